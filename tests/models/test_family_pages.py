"""The page of families says what is tried: some rows always, all of them slowly."""

from __future__ import annotations

import pytest

from tests.support.family_pages import MEASURED, PAGE, page_of, row_of
from tests.support.model_classes import CLASSES

SOME = ("gemma2", "mamba")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in CLASSES]
)
def test_a_row_of_the_page_is_what_is_tried(name: str) -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert str(row_of(name)) in lines, "run `python -m tests.support.family_pages`"


def test_the_page_has_a_row_for_each_class_and_counts_those_that_are_whole() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| family")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(CLASSES)
    whole = sum(row.split(" | ")[2] == "whole" for row in rows)
    assert f"**{whole} of {len(rows)} are whole.**" in text
    assert len({row.split(" | ")[1] for row in rows}) >= 60
    assert whole >= 40
    assert MEASURED.keys() <= CLASSES.keys()
    assert page_of([]).splitlines()[0] == text.splitlines()[0]
