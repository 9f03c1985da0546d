"""Plain sentences about a run's curves: held-out loss that rises, a loss that does not move, a first overflow,
a card that has lowered its clocks, a process for which the others wait.

Each hint is said once for what it is about; nothing here stops a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from nbtune.widgets.metrics import Series

RISING = 3  # evaluations above the best one, each at least this much worse:
WORSE = 0.01  # a hundredth of the best
FLAT_STEPS = 100  # a loss is called flat over at least so many steps, and after the warm-up
FLAT = 0.005  # relative
BEHIND = 1.3  # times as long as the others: so much slower is a process that is worth a word, when it is so
BEHIND_FOR = 10  # times in a row, a second apart
OFTEN = {"heat": 10, "power": 120}  # seconds in a minute or two in which clocks were lowered, before it is worth a word


class Hints:
    """Looks at a run as it goes on; `after_eval` and `after_steps` return hints as (message, cause, fix) or None."""

    def __init__(self) -> None:
        self._told: set[Any] = set()
        self._looked = 0
        self._slowed = dict.fromkeys(OFTEN, 0.0)
        self._behind = (-1, 0)  # which process was slower than the others, how often in a row

    def forget(self) -> None:
        """Forget what was told, which may be told again: the run went back."""
        self._told.clear()
        self._looked = 0

    def after_eval(self, evals: list[dict[str, Any]]) -> tuple[str, str, str] | None:
        """Return a warning where the held-out loss rises, from a list of {step, loss}.

        >>> losses = [2.0, 1.0, 1.1, 1.2, 1.3]
        >>> Hints().after_eval([{"step": k, "loss": loss} for k, loss in enumerate(losses)])[0]
        'The held-out loss rises since step 1.'
        """
        measured = [item for item in evals if item["loss"] is not None]
        if len(measured) <= RISING:
            return None
        best = min(measured, key=lambda item: item["loss"])
        since = [item for item in measured if item["step"] > best["step"]]
        if len(since) < RISING or any(item["loss"] < best["loss"] * (1 + WORSE) for item in since[-RISING:]):
            return None
        if ("rises", best["step"]) in self._told:
            return None
        self._told.add(("rises", best["step"]))
        return (
            f"The held-out loss rises since step {best['step']:,}.",
            "The model starts to learn the rows by heart.",
            f"stop and go back to a checkpoint near step {best['step']:,}, or take fewer epochs or more rows",
        )

    def after_steps(self, series: Series, total: int) -> tuple[str, str, str] | None:
        """Return a warning where the loss has not moved, or was no number for the first time; looks every few steps."""
        if series.next < self._looked + 10:
            return None
        self._looked = series.next
        return self._overflow(series) or self._flat(series, total)

    def _overflow(self, series: Series) -> tuple[str, str, str] | None:
        bad = np.flatnonzero(~np.isfinite(series.column("loss")))
        if not len(bad) or "nan" in self._told:
            return None
        self._told.add("nan")
        return (
            f"The loss of step {int(series.column('step')[bad[0]]):,} is no number.",
            "Numbers have overflowed, most often because the learning rate is too high.",
            "lower the learning rate, or train in bf16 or fp32 instead of fp16",
        )

    def _flat(self, series: Series, total: int) -> tuple[str, str, str] | None:
        steps, loss = series.column("step"), series.column("loss")
        warm = 0.1 * total
        first = int(np.searchsorted(steps, warm))
        if "flat" in self._told or not len(steps) or steps[-1] - warm < max(FLAT_STEPS, 0.2 * total):
            return None
        halves = np.array_split(loss[first:], 2)
        early, late = (float(np.nanmean(half)) if np.isfinite(half).any() else math.nan for half in halves)
        start = float(np.nanmean(loss[: max(1, first)]))
        moved = max(abs(early - late), abs(start - late))
        if not moved < FLAT * max(abs(early), 1e-6):
            return None
        self._told.add("flat")
        return (
            f"The loss has hardly moved in {int(steps[-1]):,} steps: {late:.4g}.",
            "The learning rate may be too low, or few tokens are trained.",
            "look at the rows with the inspector, then try a learning rate three times as high",
        )

    def after_device(self, slowed: str, temperature: float, watts: float) -> tuple[str, str, str] | None:
        """Return a warning where the device has been slowed for long, from what is said of it once a second
        (`events.Device`).

        >>> hints = Hints()
        >>> [hints.after_device("heat", 89, 300) for _ in range(10)][-1][0]
        'The GPU has lowered its clocks because it is too hot (89 °C).'
        """
        warning = None
        for why, often in OFTEN.items():
            self._slowed[why] = (
                self._slowed[why] + 1 if why in slowed.split(", ") else max(0.0, self._slowed[why] - 0.5)
            )
            if self._slowed[why] >= often and why not in self._told and warning is None:
                self._told.add(why)
                warning = _too_hot(temperature) if why == "heat" else _at_its_limit(watts)
        return warning

    def after_processes(self, seconds: Sequence[float], tokens: Sequence[int]) -> tuple[str, str, str] | None:
        """Return a warning where one of several processes has long been slower than the others, in a step and for each
        of its tokens: shares may differ.

        >>> hints = Hints()
        >>> [hints.after_processes([0.5, 0.8, 0.5], [64, 64, 64]) for _ in range(10)][-1][0]
        'Process 2 of 3 takes 1.6 times as long as the others for its share of a step.'
        """
        known = list(zip(seconds, tokens, strict=False))
        late = max(range(len(known)), key=lambda k: known[k][0], default=-1)
        others = [(s, s / t) for k, (s, t) in enumerate(known) if k != late and t > 0 and s > 0]
        if not others or tokens[late] <= 0:
            return None
        times = seconds[late] / median(took for took, _ in others)
        for_a_token = seconds[late] / tokens[late] / median(each for _, each in others)
        again = self._behind[1] if self._behind[0] == late else 0
        self._behind = (late, again + 1 if min(times, for_a_token) > BEHIND else 0)
        if self._behind[1] < BEHIND_FOR or ("behind", late) in self._told:
            return None
        self._told.add(("behind", late))
        who = f"Process {late + 1} of {len(known)}"
        return (
            f"{who} takes {times:.1f} times as long as the others for its share of a step.",
            "All wait for it: its GPU is slowed or shared with somebody, or its machine is busy.",
            "look there (`nvidia-smi`, `top`); the run may go on, what is learnt is the same",
        )


def _too_hot(temperature: float) -> tuple[str, str, str]:
    at = f" ({temperature:.0f} °C)" if temperature else ""
    return (
        f"The GPU has lowered its clocks because it is too hot{at}.",
        "Steps take longer; what is learnt is the same.",
        "see to its cooling, and to what else runs on it or beside it; the run may go on",
    )


def _at_its_limit(watts: float) -> tuple[str, str, str]:
    at = f" ({watts:.0f} W)" if watts else ""
    return (
        f"The GPU works at its power limit{at}.",
        "It lowers its clocks to stay there, as busy cards do: steps take a little longer, what is learnt is the same.",
        "nothing; `nvidia-smi -q -d POWER` shows the limit",
    )
