"""Rows with their losses as a table of text, for `run.losses()` where there is no page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nbtune.store.row_losses import RowLoss
from nbtune.widgets.sanitize import clean, without_home

_TEXT = 60  # characters of each of a row's texts


def loss_table(
    rows: Sequence[RowLoss], text: Callable[[RowLoss], tuple[str, str]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return names of columns, and rows as text.

    Args:
        rows: in the order in which they are shown.
        text: what a row asks, and what it answers.
    """
    with_base = any(row.base is not None for row in rows)
    names = ("loss", *(("base", "learnt") if with_base else ()), "tokens", "part", "source", "row", "mark", "text")
    return names, [_cells(row, text(row), with_base=with_base) for row in rows]


def _cells(row: RowLoss, text: tuple[str, str], *, with_base: bool) -> tuple[str, ...]:
    numbers = (row.loss, *((row.base, row.learnt) if with_base else ()))
    question, answer = (" ".join(clean(part, _TEXT).split()) for part in text)
    place = (f"{row.tokens:,}", row.part, clean(without_home(row.source), 40), str(row.row), row.mark)
    return (*map(_shown_number, numbers), *place, f"{question} ▸ {answer}" if question else answer)


def _shown_number(value: float | None) -> str:
    """Return a loss as people read it."""
    return "" if value is None else ("–" if not math.isfinite(value) else f"{value:.3f}")
