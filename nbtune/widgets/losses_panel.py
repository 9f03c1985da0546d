"""The loss explorer, `run.losses()`: rows by loss, each opened in the inspector by a click; as text without a page."""

from __future__ import annotations

import math
import threading
import time
from html import escape
from typing import Any

import traitlets

from nbtune.errors import NbtuneError, TrainError
from nbtune.spec import from_mapping
from nbtune.store.row_losses import ORDERS, MeasuredRows, RowLoss
from nbtune.store.run_handle import RunHandle
from nbtune.widgets import fallback
from nbtune.widgets.fallback import Shown
from nbtune.widgets.html import as_html, as_text
from nbtune.widgets.loss_table import loss_table
from nbtune.widgets.panel import Panel
from nbtune.widgets.sanitize import clean, without_home

PAGE, MOST = 12, 120  # rows that are shown at first, and at most: they stand in the notebook's file
ENDS = 10  # rows of each end that a table shows
EVERY = 0.3  # seconds between two updates
_TEXT = 160


class Losses(MeasuredRows):
    """The losses of a run's rows: measured in the background, sorted, shown as a panel, or as text without a page.

    Args:
        run, base, limit, again: as of `nbtune.store.row_losses.MeasuredRows`.
    """

    next: Any = None  # the run that the panel's button started
    _panel: LossesPanel | None = None
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

    def go_on(self, *, name: str | None = None, **fields: Any) -> RunHandle:
        """Start a run that goes on from this one's weights with the rows as they are wanted now; see
        `nbtune.Run.go_on`."""
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
        """Return where the measuring stands, in one line."""
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
        """Return the names of columns, and the first `count` rows of an order as text."""
        return loss_table(self.sorted(by, lowest=lowest)[:count], self.text)

    def _tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """Return of few rows one table, else one of each end; none as long as nothing is measured."""
        if not self.rows:
            return []
        if self.done <= 2 * ENDS:
            return [("highest loss first", *self.table(count=2 * ENDS))]
        return [("highest loss", *self.table()), ("lowest loss", *self.table(lowest=True))]

    def panel(self) -> LossesPanel:
        """Return the panel, to be shown once more or to be laid out."""
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
        for title, names, rows in self._tables():
            parts.append(f"\n{title}:\n{as_text(names, rows)}")
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [f"<div><p>{escape(self.said())}</p>"]
        for title, names, rows in self._tables():
            parts.append(as_html(names, rows, caption=title))
        return "".join([*parts, "</div>"])


class LossesPanel(Panel):
    """What `Losses` knows, sorted; what is clicked is done on that object.

    Args:
        losses: `run.losses()`.
    """

    panel = "losses"
    status = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    opened = traitlets.Dict().tag(sync=True)
    changes = traitlets.Dict().tag(sync=True)
    going = traitlets.Dict().tag(sync=True)

    def __init__(self, losses: Losses) -> None:
        self.losses, self._told_at = losses, -math.inf
        self._by, self._lowest, self._count = "loss", False, PAGE
        self._inspector: Any = None
        self._telling = threading.Lock()
        super().__init__(status=self._status(), view=self._view(), changes=self._changes())
        losses.told = self._hear_more
        self._tell()  # the measuring may have ended meanwhile

    def _hear_more(self) -> None:
        """Tell the page, not too often, that something was measured."""
        now = time.monotonic()
        if not self.losses.busy or now - self._told_at > EVERY:
            self._told_at = now
            self._tell()

    def _tell(self) -> None:
        with self._telling, self.hold_sync():  # what was looked at first is told first
            self.status, self.view, self.changes = self._status(), self._view(), self._changes()

    def _status(self) -> dict[str, Any]:
        losses = self.losses
        steps = sorted({row.step for row in list(losses.rows.values())})
        error = "" if losses.error is None else clean(losses.error, 600)
        return {
            "name": clean(losses.run.name, 200),
            "busy": losses.busy,
            "done": losses.done,
            "total": losses.total,
            "in_all": losses.in_all,
            "steps": [steps[0], steps[-1]] if steps else [],
            "live": losses.run.alive,
            "error": error,
        }

    def _view(self) -> dict[str, Any]:
        """Return the rows that are shown. A few KB."""
        rows = self.losses.sorted(self._by, lowest=self._lowest)
        shown = [self._row(row) for row in rows[: self._count]]
        more = min(MOST, len(rows)) - len(shown)
        return {"by": self._by, "lowest": self._lowest, "rows": shown, "more": max(0, more)}

    def _changes(self) -> dict[str, Any]:
        """Return how often single rows count, by their marks, as far as those are measured; and whether that can be
        undone."""
        weights = self.losses.row_weights
        marks = {row.mark for row in list(self.losses.rows.values())}
        return {
            "weights": {mark: weight for mark, weight in weights.items() if mark in marks},
            "dropped": sum(weight == 0 for weight in weights.values()),
            "weighted": sum(weight != 0 for weight in weights.values()),
            "undo": self.losses.changed,
            "steps": self.losses.run.total_steps,
        }

    def _row(self, row: RowLoss) -> dict[str, Any]:
        question, answer = (clean(text, _TEXT) for text in self.losses.text(row))
        numbers = {"loss": row.loss, "base": row.base, "learnt": row.learnt}
        losses = {key: None if v is None or not math.isfinite(v) else round(v, 4) for key, v in numbers.items()}
        columns = {
            "source": clean(without_home(row.source), 100),
            "row": row.row,
            "index": row.index,
            "held": row.part == "eval",
        }
        return {"mark": row.mark, "tokens": row.tokens, "asked": question, "said": answer, **losses, **columns}

    def in_words(self, _picture: bool) -> tuple[Shown, bool]:  # type: ignore[override]
        """Show it where the page shows no panels."""
        return Shown(repr(self.losses)), self.losses.busy

    # --- what is clicked --------------------------------------------------------------------------------------------

    def do_sort(self, by: str, lowest: bool) -> None:
        """Set another order."""
        if by not in ORDERS:
            raise NbtuneError(f"rows cannot be sorted by {by!r}")
        self._by, self._lowest, self._count = by, bool(lowest), PAGE
        self.view = self._view()

    def do_more(self) -> None:
        """Show more rows."""
        self._count = min(MOST, self._count + 2 * PAGE)
        self.view = self._view()

    def do_stop(self) -> str:
        """Leave off measuring; return the line of code, as what follows does."""
        self.losses.stop()
        return "losses.stop()"

    def do_start(self) -> str:
        """Measure the rest."""
        self.losses.start()
        self.status = self._status()
        return "losses.start()"

    def do_again(self) -> str:
        """Measure all anew."""
        self.losses.measure_again()
        self._tell()
        return "losses.measure_again()"

    def do_open(self, index: int) -> str:
        """Show a row in the inspector below, with its tokens' losses."""
        index = int(index)
        self.in_background(lambda: self._open(index), self._failed)
        return f"nbtune.inspect(run, row={index})"

    def _open(self, index: int) -> None:
        from nbtune.widgets.inspector_panel import Inspector

        if self._inspector is None:
            self._inspector = Inspector(self.losses.run, row=index)
        else:
            self._inspector.do_row(index)
        self.opened = {"model": self.inside(self._inspector), "index": index}

    def do_weight(self, mark: str, weight: float) -> str:
        """Set how often a row counts from now on: 0 leaves it out, 1 is as usual."""
        weight = int(weight) if float(weight).is_integer() else float(weight)
        self.losses.weight(str(mark), weight)
        self.changes = self._changes()
        return f'losses.drop("{mark}")' if weight == 0 else f'losses.weight("{mark}", {weight})'

    def do_undo(self) -> str:
        """Take the last change back."""
        self.losses.undo()
        self.changes = self._changes()
        return "losses.undo()"

    def do_code(self, steps: int | None = None) -> str:
        """Return the line that a run started with now would be made by, in any notebook."""
        weights = ", ".join(f'"{mark}": {weight:g}' for mark, weight in self.losses.row_weights.items())
        arguments = [*([f"row_weights={{{weights}}}"] if weights else []), *([f"steps={int(steps)}"] if steps else [])]
        return f'run = nbtune.attach("{clean(self.losses.run.id, 40)}").go_on({", ".join(arguments)})'

    def do_go_on(self, steps: int | None = None) -> str:
        """Start a run that goes on from this one's weights, and show its monitor."""
        code = self.do_code(steps)
        self.going = {"state": "starting"}
        self.in_background(lambda: self._go_on(int(steps) if steps else None), self._not_begun)
        return code

    def _go_on(self, steps: int | None) -> None:
        fields: dict[str, Any] = {"steps": steps} if steps else {}
        run = self.losses.go_on(**fields)
        self.losses.next = run
        model = self.inside(run.monitor())
        self.going = {"state": "begun", "name": clean(run.name, 200), "id": run.id, "model": model}

    def _not_begun(self, error: BaseException) -> None:
        self.going = {"state": "failed", "error": self.words(error)}

    def do_close(self) -> None:
        """Put the inspector away."""
        self.opened = {}
        if self._inspector is not None:
            self._inspector.close()
            self._inspector = None

    def _failed(self, error: BaseException) -> None:
        self.status = self._status() | {"error": self.words(error)}
