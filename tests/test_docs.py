"""What the documents show is what the program takes: links, cells, `make` targets, examples of the door."""

from __future__ import annotations

import inspect
import re
import runpy
import textwrap
from pathlib import Path

import pytest

import nbtune
from nbtune import api
from nbtune.spec import from_yaml
from nbtune.spec.reference import reference
from tests.support.every import some

REPO = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])
PAGE_NAMES = [str(page.relative_to(REPO)) for page in PAGES]


def blocks(page: Path) -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_reference_is_what_the_spec_says() -> None:
    written = (REPO / "docs" / "reference" / "spec.md").read_text(encoding="utf-8")
    assert written == reference(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r' (?:src|srcset|href)="([^"#]+)"', text)
    inside = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in inside if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_cells_that_are_shown_are_cells_that_run(page: Path) -> None:
    bodies = [block.split("\n", 1)[1] for block in blocks(page) if block.startswith("%%finetune")]
    for body in bodies:
        assert from_yaml(body, first_line=2).data  # a SpecError says what is wrong


def test_each_test_that_the_page_of_faults_names_is_there() -> None:
    page = (REPO / "docs" / "explanation" / "once-wrong.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 60
    gone = [
        (file, test)
        for file, test in named
        if not (REPO / "tests" / file).is_file()
        or (test and f"def {test}(" not in (REPO / "tests" / file).read_text(encoding="utf-8"))
    ]
    assert gone == []


def test_there_is_a_cell_to_copy_in_the_readme_and_the_tutorial() -> None:
    for page in (REPO / "README.md", REPO / "docs" / "tutorial" / "first-run.md"):
        assert any(block.startswith("%%finetune") for block in blocks(page)), page.name


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_make_knows_the_targets_that_are_named(page: Path) -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page) for line in block.splitlines()] + re.findall(r"`(make [^`]+)`", text)
    named = {word for line in lines if (found := re.match(r"make ([a-z -]+)", line)) for word in found[1].split()}
    assert named <= targets


def test_the_readme_counts_the_families_that_the_table_counts() -> None:
    counted = re.search(
        r"\*\*(\d+ of \d+) are whole", (REPO / "docs/reference/families.md").read_text(encoding="utf-8")
    )
    assert counted is not None
    assert f"[{counted[1]} families](docs/reference/families.md)" in (REPO / "README.md").read_text(encoding="utf-8")


def test_start_here_is_two_commands() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Start here")[1].split("\n## ")[0]
    commands = [
        line for block in re.findall(r"```[a-z]*\n(.*?)```", section, flags=re.DOTALL) for line in block.split("\n")
    ]
    assert [line.split("#")[0].strip() for line in commands if line.strip()] == ["make demo", "make test"]


def example_of(function: object) -> str:
    """What stands deeper than the text, before the arguments, in the docstring of a module's function."""
    text = re.split(r"\n    (?:Args|Returns|Raises):", function.__doc__ or "")[0]
    return textwrap.dedent("".join(re.findall(r"^ {8}.*\n", text, flags=re.MULTILINE)))


def test_the_docstrings_of_the_door_have_examples_that_run_as_they_stand(tmp_path: Path) -> None:
    doors = [name for name in nbtune.__all__ if inspect.isfunction(getattr(api, name, None)) and name != "watch"]
    # watch's example wants another library's trainer: tests/engine/test_watching.py makes some
    made_first = sorted(doors, key=lambda name: name in ("attach", "repeat", "runs"))  # they want a run that is there
    for name in some(made_first):
        example = example_of(getattr(api, name))
        assert f"nbtune.{name}(" in example, name
        if name == "watch":  # it wants a trainer: tests/engine/test_watching.py has some
            continue
        file = tmp_path / f"{name}.py"
        file.write_text(f"import nbtune\n{example}", encoding="utf-8")
        runpy.run_path(str(file))
    assert [run.state for run in api.runs()] == ["finished", "stopped", "finished"]  # one is a job that nobody sent
