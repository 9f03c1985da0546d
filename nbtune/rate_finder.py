"""A learning rate from a short sweep: it rises from step to step, until the loss does, too (Smith 2017, section 3.3).

It trains a copy that is thrown away: in a folder of its own, with a schedule of its own.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nbtune import api
from nbtune.engine import objects, peft_start
from nbtune.errors import NbtuneError, TrainError
from nbtune.spec import RunSpec
from nbtune.store import folder as run_folder

_DECADES = 2  # on either side of the plan's rate
_SMOOTH = 0.9
_FEWEST = 8  # steps, of which something can be said
_WIDE = 48  # characters of a bar


@dataclass(frozen=True)
class RateCurve:
    """What a sweep found.

    Attributes:
        rates: of each step.
        losses: of each step.
        smoothed: the same without most of the noise.
        proposed: the rate around which the loss fell fastest.
        planned: what the plan takes where a spec leaves it open.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    proposed: float
    planned: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        every = max(1, len(self.rates) // 16)
        low, high = min(self.smoothed), max(self.smoothed)
        lines = []
        for rate, loss in list(zip(self.rates, self.smoothed, strict=True))[::every]:
            share = (loss - low) / (high - low) if high > low else 0.0
            lines.append(f"{rate:10.2e}  {loss:8.4f}  {'▇' * (1 + round(share * _WIDE))}")
        said = (
            f"learning_rate: {self.proposed:.2g}      # the loss falls fastest there; the plan says {self.planned:.2g}"
        )
        return "\n".join(["      rate      loss", *lines, said])

    def __repr__(self) -> str:
        return str(self)


def lr_find(
    spec: api.Spec = None, *, rows: Mapping[str, Any] | None = None, sweep_steps: int = 60, **fields: Any
) -> RateCurve:
    """Return a learning rate for a run, from a short sweep on a copy; no run is changed, and none is left.

        curve = nbtune.lr_find(data=[{"prompt": "Hi", "completion": "Ahoy!"}] * 8, sweep_steps=16)

    Args:
        spec, rows, fields: as in `finetune`; its rate, its schedule and its steps do not count.
        sweep_steps: how long it sweeps.
    Raises:
        NbtuneError: as `finetune`; TrainError where no rate made the loss fall.
    """
    asked, variables = objects.named(spec, fields, rows, 1)
    planned = api.plan(_without_rate(asked), rows=variables).learning_rate
    with tempfile.TemporaryDirectory(prefix="nbtune-", ignore_cleanup_errors=True) as folder:
        run = api.finetune(_sweep(asked, planned, sweep_steps), name="lr-find", rows=variables, runs_dir=folder)
        try:
            run.wait()
        except NbtuneError:  # a rate that is far too high ends it
            if len(run.history) < _FEWEST:
                raise
        finally:
            if run.alive:
                run.stop(wait=True)
        history = run.history
    return curve_of(history["learning_rate"].tolist(), history["loss"].tolist(), planned)


def curve_of(rates: list[float], losses: list[float], planned: float) -> RateCurve:
    """Return what rising rates did to the loss, up to where it is no number, or four times its lowest.

    Raises:
        TrainError: the loss never fell.
    """
    smoothed: list[float] = []
    mean = 0.0
    for step, loss in enumerate(losses):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        now = mean / (1 - _SMOOTH ** (step + 1))
        if not math.isfinite(now) or (step >= _FEWEST and now > 4 * min(smoothed)):
            break
        smoothed.append(now)
    end = smoothed.index(min(smoothed)) + 1 if smoothed else 0
    half = max(1, min(len(smoothed) // 10, (end - 1) // 2))  # rows differ: a step by itself says little
    falls = {
        k: -_slope(rates[k - half : k + half + 1], losses[k - half : k + half + 1]) for k in range(half, end - half)
    }
    if not falls or max(falls.values()) <= 0:
        raise TrainError(
            "the loss fell at no rate of the sweep, so there is none to propose",
            fix="look at the rows (`nbtune data`), or sweep longer: sweep_steps=200",
        )
    best, most = max(falls, key=falls.__getitem__), len(smoothed)
    return RateCurve(tuple(rates[:most]), tuple(losses[:most]), tuple(smoothed), rates[best], planned)


def _slope(rates: list[float], losses: list[float]) -> float:
    """Return by how much a straight line through the losses rises with the rate's logarithm."""
    at = [math.log(rate) for rate in rates]
    middle, mean = math.fsum(at) / len(at), math.fsum(losses) / len(losses)
    along = math.fsum((x - middle) * (y - mean) for x, y in zip(at, losses, strict=True))
    return along / math.fsum((x - middle) ** 2 for x in at)


def _without_rate(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"learning_rate": None})


def _sweep(spec: RunSpec, planned: float, steps: int) -> RunSpec:
    """Return the spec of the sweep: the same, but that the rate rises evenly in its logarithm, and nothing is measured
    or asked beside."""
    start = spec.start_from
    if start is not None and peft_start.folder_of(spec) is None:  # by its name it is known in another folder
        start = str(run_folder.find(start, run_folder.runs_root(None)))
    body = spec.model_dump(exclude_unset=True)
    for key in ("epochs", "warmup_ratio", "schedule", "eval", "checkpoint", "samples"):
        body.pop(key, None)
    body |= {"steps": max(steps, _FEWEST), "learning_rate": planned * 10**_DECADES, "start_from": start}
    body |= {"lr_scheduler_type": "range_test", "schedule": {"floor": 10.0 ** (-2 * _DECADES)}, "eval": {"split": 0}}
    return RunSpec(**{**body, "checkpoint": {"minutes": 10_000.0}})
