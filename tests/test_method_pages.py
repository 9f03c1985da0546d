"""docs/methods: a page for each method that there is, with its four parts, its chart, and what the code says."""

from __future__ import annotations

import json
import re

import pytest

from nbtune.methods import METHODS
from nbtune.spec import from_yaml
from tests.support import method_pages
from tests.tools import method_charts

CHARTS = json.loads(method_charts.FIGURES.read_text(encoding="utf-8"))


def text_of(name: str) -> str:
    return method_pages.page_of(name).read_text(encoding="utf-8")


def test_each_method_has_a_page_and_each_page_a_method() -> None:
    assert {path.stem for path in method_pages.PAGES.glob("*.md")} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_when_of_what_rows_by_which_cell_and_with_what_chart(name: str) -> None:
    text = text_of(name)
    parts = method_pages.parts_of(text)
    assert text.startswith(f"# {name}: ")
    assert [part for part in parts if part in method_pages.PARTS] == list(method_pages.PARTS)
    assert len(parts["When"].split()) >= 30
    assert "```" in parts["Rows"] or "(sft.md)" in parts["Rows"], "a row is shown"
    specs = [from_yaml(cell) for cell in re.findall(r"^```\n%%finetune[^\n]*\n(.*?)^```", text, re.M | re.S)]
    assert name in {spec.method for spec in specs}
    assert f"](../pictures/methods/{name}.svg)" in parts["Its chart"]
    for drawn in CHARTS[name].keys() - {"code", "loss", "eval_loss"}:
        assert re.split("[_:]", drawn.removeprefix("eval_"))[0] in parts["Its chart"].lower(), (
            f"{drawn} is drawn, and not said"
        )


@pytest.mark.parametrize("name", METHODS)
def test_its_chart_is_of_the_code_that_it_shows(name: str) -> None:
    remake = f"python -m tests.tools.method_charts {name}"
    assert CHARTS[name]["code"] == method_pages.cell_mark(text_of(name)), f"the page has changed since: `{remake}`"
    picture = (method_charts.PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    assert "<svg" in picture
    assert "rgb(255" not in picture, "no white ground: pages are dark, too"


@pytest.mark.parametrize("name", METHODS)
def test_what_is_made_of_the_code_is_made_anew(name: str) -> None:
    text = text_of(name)
    assert method_pages.drawn(text, name) == text, "run `python -m tests.support.method_pages`, as `make docs` does"


def test_a_page_without_a_place_for_it_is_named() -> None:
    with pytest.raises(ValueError, match=r"docs/methods/dpo\.md has no line"):
        method_pages.drawn("# dpo: preferences\n", "dpo")
