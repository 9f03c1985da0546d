"""The loss explorer: rows by loss, each opened in the inspector by a click."""

from __future__ import annotations

import math
import time
from typing import Any

import traitlets

from nbtune.errors import NbtuneError
from nbtune.store.row_losses import ORDERS, RowLoss
from nbtune.widgets.base import Panel
from nbtune.widgets.fallback import Shown
from nbtune.widgets.loss_table import Losses
from nbtune.widgets.sanitize import clean, without_home

__all__ = ["LossesPanel"]

PAGE, MOST = 12, 120  # rows that are shown at first, and at most: they stand in the notebook's file
EVERY = 0.3  # seconds between two updates
_TEXT = 160


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
        self._monitor: Any = None
        losses.told = self._hear_more
        super().__init__(status=self._status(), view=self._view(), changes=self._changes())

    def _hear_more(self) -> None:
        """Something was measured: the page is told, not too often."""
        now = time.monotonic()
        if not self.losses.busy or now - self._told_at > EVERY:
            self._told_at = now
            self._tell()

    def _tell(self) -> None:
        with self.hold_sync():
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
        """The rows that are shown. A few KB."""
        rows = self.losses.sorted(self._by, lowest=self._lowest)
        shown = [self._row(row) for row in rows[: self._count]]
        more = min(MOST, len(rows)) - len(shown)
        return {"by": self._by, "lowest": self._lowest, "rows": shown, "more": max(0, more)}

    def _changes(self) -> dict[str, Any]:
        """How often single rows count, by their marks, as far as those are measured; and whether that can be undone."""
        weights = self.losses.row_weights
        there = {row.mark for row in list(self.losses.rows.values())}
        return {
            "weights": {mark: weight for mark, weight in weights.items() if mark in there},
            "dropped": sum(weight == 0 for weight in weights.values()),
            "weighted": sum(weight != 0 for weight in weights.values()),
            "undo": self.losses.changed,
            "steps": self.losses.run.total_steps,
        }

    def _row(self, row: RowLoss) -> dict[str, Any]:
        asked, said = (clean(text, _TEXT) for text in self.losses.text(row))
        numbers = {"loss": row.loss, "base": row.base, "learnt": row.learnt}
        told = {key: None if v is None or not math.isfinite(v) else round(v, 4) for key, v in numbers.items()}
        place = {
            "source": clean(without_home(row.source), 100),
            "row": row.row,
            "index": row.index,
            "held": row.part == "eval",
        }
        return {"mark": row.mark, "tokens": row.tokens, "asked": asked, "said": said, **told, **place}

    def in_words(self, _picture: bool) -> tuple[Shown, bool]:  # type: ignore[override]
        """Where the page shows no panels."""
        return Shown(repr(self.losses)), self.losses.busy

    # --- what is clicked --------------------------------------------------------------------------------------------

    def do_sort(self, by: str, lowest: bool) -> None:
        """Another order."""
        if by not in ORDERS:
            raise NbtuneError(f"rows cannot be sorted by {by!r}")
        self._by, self._lowest, self._count = by, bool(lowest), PAGE
        self.view = self._view()

    def do_more(self) -> None:
        """Shows more rows."""
        self._count = min(MOST, self._count + 2 * PAGE)
        self.view = self._view()

    def do_stop(self) -> str:
        """Leaves off measuring; returns the line of code, as what follows does."""
        self.losses.stop()
        return "losses.stop()"

    def do_start(self) -> str:
        """Measures the rest."""
        self.losses.start()
        self.status = self._status()
        return "losses.start()"

    def do_again(self) -> str:
        """Measures all anew."""
        self.losses.measure_again()
        self._tell()
        return "losses.measure_again()"

    def do_open(self, index: int) -> str:
        """Shows a row in the inspector below, with its tokens' losses."""
        index = int(index)
        self.in_background(lambda: self._open(index), self._failed)
        return f"nbtune.inspect(run, row={index})"

    def _open(self, index: int) -> None:
        from nbtune.widgets.inspector_panel import Inspector

        if self._inspector is None:
            self._inspector = Inspector(self.losses.run, row=index)
        else:
            self._inspector.do_row(index)
        self.opened = {"model": self._inspector.model_id, "index": index}

    def do_weight(self, mark: str, weight: float) -> str:
        """How often a row counts from now on: 0 leaves it out, 1 is as usual."""
        weight = int(weight) if float(weight).is_integer() else float(weight)
        self.losses.weight(str(mark), weight)
        self.changes = self._changes()
        return f'losses.drop("{mark}")' if weight == 0 else f'losses.weight("{mark}", {weight})'

    def do_undo(self) -> str:
        """Takes the last change back."""
        self.losses.undo()
        self.changes = self._changes()
        return "losses.undo()"

    def do_code(self, steps: int | None = None) -> str:
        """The line that a run started with now would be made by, in any notebook."""
        weights = ", ".join(f'"{mark}": {weight:g}' for mark, weight in self.losses.row_weights.items())
        given = [*([f"row_weights={{{weights}}}"] if weights else []), *([f"steps={int(steps)}"] if steps else [])]
        return f'run = nbtune.attach("{clean(self.losses.run.id, 40)}").go_on({", ".join(given)})'

    def do_go_on(self, steps: int | None = None) -> str:
        """Starts a run that goes on from this one's weights, and shows its monitor."""
        code = self.do_code(steps)
        self.going = {"state": "starting"}
        self.in_background(lambda: self._go_on(int(steps) if steps else None), self._not_begun)
        return code

    def _go_on(self, steps: int | None) -> None:
        from nbtune.widgets.monitor_panel import Monitor

        asked: dict[str, Any] = {"steps": steps} if steps else {}
        run = self.losses.go_on(**asked)
        self.losses.next = run
        self._monitor = Monitor(run)
        self.going = {"state": "begun", "name": clean(run.name, 200), "id": run.id, "model": self._monitor.model_id}

    def _not_begun(self, error: BaseException) -> None:
        self.going = {"state": "failed", "error": self.words(error)}

    def do_close(self) -> None:
        """Puts the inspector away."""
        self.opened = {}
        if self._inspector is not None:
            self._inspector.close()
            self._inspector = None

    def _failed(self, error: BaseException) -> None:
        self.status = self._status() | {"error": self.words(error)}
