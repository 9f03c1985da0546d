"""A run in one file, opened from disk in a browser that has no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import REPO
from playwright.sync_api import expect

import nbtune

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\"> --> \u2028 {{x}} \x1b[31m"
AXE = REPO / "js" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("replay")
    rows = [{"prompt": f"Who are you {k}? {HOSTILE}", "completion": f"A pirate {k}!"} for k in range(40)]
    spec = {"data": rows, "steps": 6, "batch_size": 2, "samples": ["Who are you?", HOSTILE[:60]], "eval": {"every": 2}}
    run = nbtune.finetune(spec, runs_dir=root).wait()
    return run.html(root / "shown.html")


@contextmanager
def _opened(browser: Any, path: Path, scheme: str, width: int, *, axe: bool) -> Iterator[Any]:
    """The page, with its chart drawn; it says nothing on the console and asks for nothing.

    Args:
        axe: it is put into the page by hand, which the page's own policy would not let it.
    """
    size = {"width": width, "height": 800}
    context = browser.chromium.new_context(offline=True, color_scheme=scheme, viewport=size, bypass_csp=axe)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "blob:", "data:")) or said.append(request.url))
    page.goto(path.as_uri())
    page.locator('.nbt-monitor[data-plotly="true"]').wait_for()
    expect(page.locator(".nbt-chart-loss .main-svg").first).to_be_visible()
    yield page
    assert said == []
    context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), pytest.param("dark", 340, marks=pytest.mark.slow)])
def test_the_8b_run_that_the_documents_show(browser: Any, scheme: str, width: int) -> None:
    shown = REPO / "docs" / "pictures" / "run8b.html"
    assert shown.stat().st_size < 5 * 2**20
    with _opened(browser, shown, scheme, width, axe=True) as page:
        expect(page.locator('[data-part="rows"] details')).to_have_count(3)
        assert "/tmp/" not in page.content()  # nothing of the machine that it was recorded on
        page.evaluate(AXE.read_text(encoding="utf-8"))
        assert [each["id"] for each in page.evaluate("() => axe.run()")["violations"]] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("scheme", "width"), [pytest.param("light", 1100, marks=pytest.mark.slow), ("dark", 340)])
def test_it_opens_from_a_file_without_a_network(browser: Any, replay: Path, scheme: str, width: int) -> None:
    with _opened(browser, replay, scheme, width, axe=scheme == "dark") as page:
        expect(page.locator("button:visible")).to_have_count(0)  # nothing that would need a kernel
        step = page.get_by_role("slider", name="Step")
        step.focus()
        step.press("Home")
        expect(page.locator('[data-part="samples"] output')).to_have_text("0")
        expect(page.locator('[data-part="samples"] mark')).to_have_count(0)
        rows = page.locator('[data-part="rows"] details')
        expect(rows).to_have_count(3)
        expect(rows.first).to_contain_text("<img src=x onerror")
        assert rows.first.locator(".nbt-on").count() > 3
        assert page.locator("#nbtune-replay img").count() == 0
        assert page.title() == "Run run"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if scheme == "dark":
            page.evaluate(AXE.read_text(encoding="utf-8"))
            found = page.evaluate("() => axe.run()")["violations"]
            serious = [each for each in found if each["impact"] in ("serious", "critical")]
            assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious] == []
