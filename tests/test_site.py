"""The documentation's site: every page is found from its first one, and no link leads nowhere."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    return runpy.run_path(str(REPO / "docs" / "build_site.py"))


def test_every_page_is_in_the_menu_once(site: dict[str, Any]) -> None:
    texts = site["pages"]()
    menu = site["navigation"](texts)
    shown = [page for part in menu for pages in part.values() for page in ([pages] if isinstance(pages, str) else
             [name for entry in pages for name in entry.values()])]  # fmt: skip
    assert sorted(shown) == sorted(page for page in texts if not page.startswith("bench/"))


def test_a_page_that_nobody_names_ends_the_build(site: dict[str, Any]) -> None:
    texts = {**site["pages"](), "how-to/lost.md": "# Lost\n"}
    with pytest.raises(SystemExit, match=r"how-to/lost\.md"):
        site["navigation"](texts)


@pytest.mark.parametrize(
    ("page", "link", "led"),
    [
        ("index.md", "how-to/data.md", "how-to/data.md"),
        ("replay.md", "pictures/run8b.html", "pictures/run8b.html"),
        ("how-to/runs.md", "../data.md", "../data.md"),
        ("index.md", "../example_notebooks/01_your_own_csv.ipynb", "/example_notebooks/01_your_own_csv.ipynb"),
        ("explanation/house.md", "../../nbtune/api.py", "/nbtune/api.py"),
        ("explanation/house.md", "../../CHANGELOG.md", "../CHANGELOG.md"),
        ("CONTRIBUTING.md", "docs/index.md", "index.md"),
        ("index.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_lead_within_the_site_or_to_the_repository(site: dict[str, Any], page: str, link: str, led: str) -> None:
    said = site["with_links_of_the_site"](f"[x]({link})", page)
    assert said == f"[x]({led})" or said == f"[x]({site['SOURCES']}{led})"


def test_links_in_code_are_left(site: dict[str, Any]) -> None:
    text = "```\n[x](../README.md)\n```\n"
    assert site["with_links_of_the_site"](text, "index.md") == text


def test_a_bar_in_code_of_a_table_has_no_stroke_before_it(site: dict[str, Any]) -> None:
    text = "| `(q\\|v)_proj` | a \\| b |\n\n`a\\|b`\n"
    assert site["with_bars_of_the_site"](text) == "| `(q|v)_proj` | a \\| b |\n\n`a\\|b`\n"


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    pytest.importorskip("zensical")  # `make site` installs it
    build = [sys.executable, str(REPO / "docs" / "build_site.py"), str(tmp_path / "site")]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    house = (tmp_path / "site" / "explanation" / "house.html").read_text(encoding="utf-8")
    assert 'class="mermaid"' in house
    assert (tmp_path / "site" / "reference" / "spec.html").stat().st_size > 50_000
