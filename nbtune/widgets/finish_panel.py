"""The card of a run that has ended: what it learnt, base against tuned on held-out rows, answers before and after."""

from __future__ import annotations

import contextlib
from typing import Any

import traitlets

from nbtune.errors import NbtuneError
from nbtune.store.outcome import Outcome, measure, remembered
from nbtune.store.run_handle import RunHandle
from nbtune.widgets.panel import Panel
from nbtune.widgets.run_report import score_rows
from nbtune.widgets.run_state import RunView
from nbtune.widgets.sanitize import clean

AUTOMATIC = 2_000_000_000  # parameters; a larger model is loaded only when somebody asks for it
_LAST = 5  # steps (of long runs, boxes of them) whose mean is the loss at the end


class Finish(Panel):
    """What a run came to.

    Args:
        run: a run that has ended.
        view: what is known of it.
    """

    panel = "finish"
    facts = traitlets.Dict().tag(sync=True)
    outcome = traitlets.Dict().tag(sync=True)
    state = traitlets.Unicode("").tag(sync=True)

    def __init__(self, run: RunHandle, view: RunView) -> None:
        self.run = run
        known = remembered(run)
        super().__init__(facts=_facts(run, view), outcome=_shown(known), state="known" if known else "asks")
        if known is None and 0 < int(getattr(run.plan, "parameters", 0) or 0) <= AUTOMATIC:
            self.do_measure()

    def do_measure(self) -> None:
        """Measure held-out rows, and ask base and tuned model."""
        if self.state != "working":
            self.state = "working"
            self.in_background(self._measure, self._failed)

    def _measure(self) -> None:
        measure(self.run, self._tell)
        self.state = "known"
        if getattr(self.run.plan, "device", "cpu") != "cpu":
            with contextlib.suppress(NbtuneError):
                self.run.free()  # the card's memory is for the next run

    def _tell(self, outcome: Outcome) -> None:
        self.outcome = _shown(outcome)

    def _failed(self, error: BaseException) -> None:
        self.outcome = {**self.outcome, "error": self.words(error)}
        self.state = "failed"


def _facts(run: RunHandle, view: RunView) -> dict[str, Any]:
    """Return the losses at the beginning and at the end, and the lines that use the model."""
    with view.lock:
        losses, counts = ([float(x) for x in view.series.column(name)] for name in ("loss", "count"))
        evals = [(item["loss"], item["step"]) for item in view.lists["evals"] if item["loss"] is not None]
    last, of = losses[-_LAST:], sum(counts[-_LAST:])
    mean = sum(loss * count for loss, count in zip(last, counts[-_LAST:], strict=True)) / max(1, of)
    found: dict[str, Any] = {"loss": [losses[0], mean], "last": int(of)} if len(losses) > 1 else {}
    found |= {"eval": [evals[0][0], evals[-1][0]], "step": evals[0][1]} if len(evals) > 1 else {}
    scores = [[name, was, now] for name, was, now in score_rows(run)]
    found |= {"scores": scores[:24]} if scores else {}
    with contextlib.suppress(AttributeError, NbtuneError, OSError):  # a run that has none yet
        found["code"] = clean(run.snippet(), 4000)
    return found


def _shown(outcome: Outcome | None) -> dict[str, Any]:
    if outcome is None:
        return {}
    numbers = {key: getattr(outcome, key) for key in ("rows", "base", "tuned", "low", "high", "better")}
    names = ("prompt", "base", "tuned", "wanted")
    asked = [{k: clean(getattr(one, k), 1200) for k in names} | {"seen": bool(one.seen)} for one in outcome.asked]
    return {**numbers, "asked": asked}
