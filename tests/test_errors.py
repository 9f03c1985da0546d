"""Errors say what was wrong, where, and what to do, and keep saying it across a process boundary."""

from __future__ import annotations

import pickle

import pytest

from nbtune import errors
from tests.support.every import every

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.NbtuneError)]


@pytest.mark.parametrize("kind", KINDS)
def test_cause_place_and_fix_are_all_shown(kind: type[errors.NbtuneError]) -> None:
    error = kind("the column `text` is not there", place="rows.jsonl, row 17", fix="write `columns: {text: body}`")
    assert str(error) == "rows.jsonl, row 17: the column `text` is not there\n  → write `columns: {text: body}`"
    assert error.args == ("the column `text` is not there",)


def test_a_place_or_a_fix_that_is_not_known_leaves_no_trace() -> None:
    assert str(errors.PlanError("it does not fit")) == "it does not fit"
    assert str(errors.PlanError("it does not fit", place="the plan")) == "the plan: it does not fit"
    assert str(errors.PlanError("it does not fit", fix="use qlora")) == "it does not fit\n  → use qlora"


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_way_to_another_process(kind: type[errors.NbtuneError]) -> None:
    error = kind("cause", place="place", fix="fix")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.cause, back.place, back.fix, str(back)) == ("cause", "place", "fix", str(error))


def test_one_except_catches_them_all_and_none_catches_another() -> None:
    assert every(issubclass(kind, errors.NbtuneError) for kind in KINDS)
    leaves = [kind for kind in KINDS if kind is not errors.NbtuneError]
    assert every(kind.__bases__ == (errors.NbtuneError,) for kind in leaves)


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = [line.split()[1] for line in errors.__doc__.splitlines() if line.startswith(("├──", "└──"))]
    assert sorted(["NbtuneError", *drawn]) == sorted(kind.__name__ for kind in KINDS)


def test_a_text_becomes_the_error_again() -> None:
    error = errors.TrainError("no space left", place="demo", fix="free some")
    again = errors.TrainError.said(str(error))
    assert (again.cause, again.fix, str(again)) == ("demo: no space left", "free some", str(error))
    assert errors.TrainError.said("it failed").fix == ""
