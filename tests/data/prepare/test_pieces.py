"""Texts of a row that judges: what stays of a long one, whether anything of it is learnt, where its labels stand."""

from __future__ import annotations

import numpy as np
import pytest

from nbtune.data.formats.reader import Parts
from nbtune.data.prepare.pieces import Piece, Whole
from nbtune.errors import DataError

NOBODYS = Parts(())


def whole(trained: str, steps: tuple[float, ...] = ()) -> Whole | DataError:
    """A text of so many tokens, of which those marked by an x are trained."""
    mask = np.array([letter == "x" for letter in trained])
    return Whole.of(np.arange(len(trained), dtype=np.int32), mask, Piece(0, NOBODYS, steps=steps))


def judged(made: Whole | DataError) -> list[float | None]:
    assert isinstance(made, Whole)
    assert made.judged is not None
    return [None if value != value else float(value) for value in made.judged]


def test_each_step_is_judged_at_the_last_token_that_is_trained_of_it() -> None:
    assert judged(whole(".x..x", (1.0, 0.0))) == [None, 1, None, None, 0]
    assert judged(whole(".xx.x", (1.0, 0.0))) == [None, None, 1, None, 0]  # a line break of two tokens
    assert judged(whole("xx.xxx", (1.0, 0.0))) == [None, 1, None, None, None, 0]
    assert judged(whole("xx", (0.0, 1.0))) == [0, 1]
    for trained, steps in ((".x..x", (1.0,)), (".xx", (1.0, 0.0, 1.0)), ("...", (1.0,))):
        assert isinstance(whole(trained, steps), DataError)


@pytest.mark.parametrize("left", [False, True])
def test_a_long_text_keeps_its_beginning_or_its_end_with_all_that_is_known_of_it(left: bool) -> None:
    made = whole(".x.xx.x", (1.0, 0.0, 3.0))
    assert isinstance(made, Whole)
    for count in range(1, 9):
        part = made.at_most(count, left)
        kept = list(range(7))[-count:] if left else list(range(7))[:count]
        assert part.ids.tolist() == kept
        assert part.trained.tolist() == [made.trained[i] for i in kept]
        assert judged(part) == [judged(made)[i] for i in kept]


def test_a_first_token_is_not_learnt_since_nothing_stands_before_it() -> None:
    for trained, learnt in (("x", False), ("x..", False), (".x", True), ("x.x", True), ("...", False)):
        made = whole(trained)
        assert isinstance(made, Whole)
        assert made.says("pairs") is learnt
        assert made.says("labelled")
    steps = whole("x", (1.0,))
    assert isinstance(steps, Whole)
    assert steps.says("stepwise")  # a step is judged where it ends, whatever stands before
    assert not whole(".x", (1.0,)).at_most(1, left=False).says("stepwise")  # type: ignore[union-attr]
