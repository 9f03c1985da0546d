"""Texts of rows on their way, before and after they are tokenised: which row each is of, and what was judged of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbtune.data.formats.messages import Chat
from nbtune.data.formats.reader import Parts
from nbtune.errors import DataError


class Piece(NamedTuple):
    """A text of the row of that number; `last` of the row's texts, `value` and `steps` as judged, `weight` as a spec's
    `row_weights` say (None where there are none)."""

    number: int
    row: Chat | Parts
    last: bool = True
    value: float | None = None
    steps: tuple[float, ...] = ()
    weight: float | None = None


class Whole(NamedTuple):
    """A text of a row that judges, as tokens; `judged`: for steps, the label of each at its last token, NaN elsewhere;
    float32 [n]."""

    ids: np.ndarray
    trained: np.ndarray
    piece: Piece
    judged: np.ndarray | None = None

    @classmethod
    def of(cls, ids: np.ndarray, trained: np.ndarray, piece: Piece) -> Whole | DataError:
        """Return it, or what is wrong with its steps."""
        if not piece.steps:
            return cls(ids, trained, piece)
        ends = np.flatnonzero(trained)  # a line break each, or a token that ends with one
        if len(ends) != len(piece.steps):
            ends = np.flatnonzero(trained & ~np.append(trained[1:], False))
        if len(ends) != len(piece.steps):
            return DataError(
                "what is judged in it cannot be told apart: two line breaks are one token",
                fix="leave that row out",
            )
        judged = np.full(len(ids), np.nan, np.float32)
        judged[ends] = piece.steps
        return cls(ids, trained, piece, judged)

    def at_most(self, count: int, left: bool) -> Whole:
        """Return its first tokens, or with `left` cut its last ones."""
        part = slice(max(0, len(self.ids) - count), None) if left else slice(0, count)
        judged = None if self.judged is None else self.judged[part]
        return self._replace(ids=self.ids[part], trained=self.trained[part], judged=judged)

    def says(self, kind: str) -> bool:
        """Tell whether something of it is learnt: a judged step, a text with a label, else a token behind the first."""
        if self.judged is not None:
            return not bool(np.isnan(self.judged).all())
        return len(self.ids) > 0 if kind == "labelled" else bool(self.trained[1:].any())

    def same_as(self, others: Sequence[Whole]) -> bool:
        """Tell whether one of the others has the same tokens."""
        return any(np.array_equal(self.ids, other.ids) for other in others)
