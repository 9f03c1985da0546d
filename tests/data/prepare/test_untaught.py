"""Trained tokens of which rows say nothing: those that stand nowhere, and those that nothing reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbtune.data.prepare.untaught import TrainedTokens
from nbtune.spec import from_mapping


def said_of(rows: list[tuple[list[int], list[int]]], *, one_weight: bool = False, **fields: Any) -> list[str]:
    asked = {"data": "rows", "adapter": {"trainable_token_indices": [7, 8, 9]}, **fields}
    tokens = TrainedTokens(from_mapping(asked), None, one_weight=one_weight)
    tokens.see((np.array(ids, np.int32), np.array(learnt, bool)) for ids, learnt in rows)
    return tokens.warnings()


@pytest.mark.parametrize("one_weight", [True, False])
def test_tokens_that_stand_in_front_of_what_is_learnt_are_taught(one_weight: bool) -> None:
    rows = [([7, 1, 2], [0, 0, 1]), ([1, 8, 9, 2], [0, 1, 1, 1])]
    assert said_of(rows, one_weight=one_weight) == []


@pytest.mark.parametrize(("one_weight", "learnt"), [
    (True, "all that is learnt of them is not to say them"), (False, "nothing is learnt of them")
])  # fmt: skip
def test_tokens_that_stand_nowhere_are_counted_and_named(one_weight: bool, learnt: str) -> None:
    said = said_of([([1, 8, 2], [0, 1, 1])], one_weight=one_weight)
    assert said == [f"2 of 3 trained tokens (`7`, `9`) stand in no row: {learnt}"]


def test_an_embedding_is_learnt_only_of_tokens_in_front_of_a_loss() -> None:
    """A row that ends with the token, or is learnt only before it, says nothing of what it means."""
    rows = [([7, 1, 8], [0, 1, 1]), ([1, 2, 9, 9], [0, 1, 0, 0])]
    (said,) = said_of(rows)
    assert said.startswith("2 of 3 trained tokens (`8`, `9`) stand only where no token behind is learnt: their embed")
    (said,) = said_of(rows, one_weight=True)  # of 8 the head learns when it is said
    assert said.startswith("1 of 3 trained tokens (`9`) stands only where")


def test_a_head_of_scores_reads_a_row_to_its_end() -> None:
    rows = [([7, 1, 8], [0, 0, 0]), ([9, 1], [0, 0])]
    assert said_of(rows, method="classification") == []
    assert said_of(rows[:1], method="classification") == [
        "1 of 3 trained tokens (`9`) stands in no row: nothing is learnt of it"
    ]


def test_of_many_tokens_some_are_named() -> None:
    (said,) = said_of([([1], [1])], adapter={"trainable_token_indices": list(range(10, 60))})
    assert said.startswith("50 of 50 trained tokens (`10`, `11`, `12` and 47 more) stand in no row")
