"""`run.losses()`: the rows that a model knows worst and best, as a panel where there is a page, else as a table."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from nbtune.errors import TrainError
from nbtune.spec import from_mapping
from nbtune.store.row_losses import MeasuredRows, RowLoss
from nbtune.widgets import fallback
from nbtune.widgets.html import as_html, as_text
from nbtune.widgets.sanitize import clean, without_home

__all__ = ["Losses", "shown_number"]

ENDS = 10  # rows of each end that a table shows
_TEXT = 60  # characters of each of a row's texts, in a table


class Losses(MeasuredRows):
    """The losses of a run's rows: measured in the background, sorted, shown.

    Args:
        run, base, limit, again: as of `nbtune.store.row_losses.MeasuredRows`.
    """

    next: Any = None  # the run that the panel's button started
    _panel: Any = None
    _changes: list[dict[str, float]] = []  # noqa: RUF012 — never changed in place

    # --- what is to be done with rows -------------------------------------------------------------------------------

    @property
    def row_weights(self) -> dict[str, float]:
        """What the run's spec says of single rows, and what was changed here since."""
        return dict(self._changes[-1] if self._changes else self.run.spec.row_weights)

    def drop(self, mark: str) -> Losses:
        """Leave a row out, by its mark."""
        return self.weight(mark, 0)

    def weight(self, mark: str, weight: float = 2) -> Losses:
        """Let a row count so often, by its mark; 1 takes back what was said of it.

        Raises:
            SpecError: the weight is none.
            TrainError: no measured row has this mark.
        """
        if mark not in {row.mark for row in list(self.rows.values())}:
            raise TrainError(f"no measured row has the mark {mark!r}", fix="`losses.frame` has the marks")
        now = {key: value for key, value in self.row_weights.items() if key != mark}
        now |= {} if weight == 1 else {mark: weight}
        from_mapping({"data": "rows", "row_weights": now})  # refused before it counts
        self._changes = [*self._changes, now]
        return self

    @property
    def changed(self) -> bool:
        """Whether there is a change to take back."""
        return bool(self._changes)

    def undo(self) -> Losses:
        """Take the last change back; what the run's own spec says stays."""
        self._changes = self._changes[:-1]
        return self

    def go_on(self, *, name: str | None = None, **fields: Any) -> Any:
        """A run that goes on from this one's weights with the rows as they are wanted now; see `nbtune.Run.go_on`."""
        return self.run.go_on(name=name, row_weights=self.row_weights, **fields)

    # --- what is shown ----------------------------------------------------------------------------------------------

    @property
    def frame(self) -> Any:
        """A pandas DataFrame of what is measured, the highest loss first."""
        import pandas

        columns = ("part", "source", "row", "mark", "tokens", "trained", "step", "loss", "base", "learnt")
        rows = [[getattr(row, column) for column in columns] for row in self.sorted()]
        return pandas.DataFrame(rows, columns=columns)

    def said(self) -> str:
        """Where the measuring stands, in one line."""
        name = clean(self.run.name, 200)
        if self.error is not None:
            return f"{name}: measuring failed: {clean(self.error, 600)}"
        if not self.rows and self.busy:
            return f"{name}: its rows are being read"
        steps = sorted({row.step for row in list(self.rows.values())})
        when = "" if not steps else f", with the weights after step {steps[-1]:,}"
        if len(steps) > 1:
            when = f", with the weights between step {steps[0]:,} and {steps[-1]:,}"
        more = f" of {self.in_all:,} there are" if self.in_all > self.total else ""
        state = "being measured" if self.busy else "measured"
        return f"{name}: {self.done:,} of {self.total:,} rows{more} {state}{when}"

    def table(
        self, by: str = "loss", *, count: int = ENDS, lowest: bool = False
    ) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Names of columns, and the first `count` rows of an order as text."""
        rows = self.sorted(by, lowest=lowest)[:count]
        with_base = any(row.base is not None for row in rows)
        names = ("loss", *(("base", "learnt") if with_base else ()), "tokens", "part", "source", "row", "mark", "text")
        return names, [self._cells(row, with_base) for row in rows]

    def _cells(self, row: RowLoss, with_base: bool) -> tuple[str, ...]:
        numbers = (row.loss, *((row.base, row.learnt) if with_base else ()))
        asked, said = (" ".join(clean(text, _TEXT).split()) for text in self.text(row))
        text = f"{asked} ▸ {said}" if asked else said
        place = (f"{row.tokens:,}", row.part, clean(without_home(row.source), 40), str(row.row), row.mark)
        return (*map(shown_number, numbers), *place, text)

    def _tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """Of few rows one table, else one of each end."""
        if self.done <= 2 * ENDS:
            return [("highest loss first", *self.table(count=2 * ENDS))]
        return [("highest loss", *self.table()), ("lowest loss", *self.table(lowest=True))]

    def panel(self) -> Any:
        """The panel, to be shown once more or to be laid out."""
        from nbtune.widgets.losses_panel import LossesPanel

        if self._panel is None:
            self._panel = LossesPanel(self)
        return self._panel

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if fallback.has_page():
            return self.panel()._repr_mimebundle_(**options)
        self.wait()  # an output that nobody can renew
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def __repr__(self) -> str:
        parts = [self.said()]
        for title, names, rows in self._tables() if self.rows else ():
            parts.append(f"\n{title}:\n{as_text(names, rows)}")
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        found = [f"<div><p>{escape(self.said())}</p>"]
        for title, names, rows in self._tables() if self.rows else ():
            found.append(as_html(names, rows, caption=title))
        return "".join([*found, "</div>"])


def shown_number(value: float | None) -> str:
    """A loss as people read it."""
    return "" if value is None else ("–" if not math.isfinite(value) else f"{value:.3f}")
