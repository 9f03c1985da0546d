"""The learning rate of a step, as transformers' schedules define it, without state: resume needs the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nbtune.spec.learning import ScheduleArgs

_FIRST, _LAST = 1 / 25, 1 / 25 / 1e4  # of one cycle, as torch's
_LOWEST = 1e-4  # of a range test


def learning_rate_of(
    name: str, *, total_steps: int, warmup_ratio: float, args: ScheduleArgs | None = None
) -> Callable[[int], float]:
    """Return a function of the 0-based step that gives the factor for the peak learning rate.

    Args:
        name: of `nbtune.spec.learning.SCHEDULES`, with its meaning in `transformers.get_scheduler`; ``one_cycle`` as
            `torch.optim.lr_scheduler.OneCycleLR`, ``range_test`` up from the floor, evenly in its logarithm.
        total_steps: optimizer steps of the whole run.
        warmup_ratio: share of them in which the factor rises from 0 to 1; the last step is never one of these.
        args: what the schedule is told besides.
    """
    args = args or ScheduleArgs()
    warmup = warmup_of(total_steps, warmup_ratio, args)
    if name == "one_cycle":
        return lambda step: _one_cycle(step, total_steps, warmup)
    if name == "range_test":
        return lambda step: (args.floor or _LOWEST) ** (1 - step / max(1, total_steps - 1) if total_steps > 1 else 0)
    import torch
    from transformers import get_scheduler

    parameter = torch.nn.Parameter(torch.zeros(()))
    kind, told = _as_transformers_has_it(name, args, total_steps, warmup)
    schedule = get_scheduler(
        kind,
        torch.optim.SGD([parameter], lr=1.0),
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=told,
    )
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return lambda step: float(factor(step))


def warmup_of(total_steps: int, warmup_ratio: float, args: ScheduleArgs) -> int:
    """Return the steps in which the rate rises; the last step is none of these: a run of one would train nothing.

    >>> warmup_of(100, 0.03, ScheduleArgs()), warmup_of(1, 0.5, ScheduleArgs())
    (3, 0)
    """
    asked = math.ceil(total_steps * warmup_ratio) if args.warmup_steps is None else args.warmup_steps
    return min(asked, max(total_steps - 1, 0))


def _as_transformers_has_it(name: str, args: ScheduleArgs, total: int, warmup: int) -> tuple[str, dict[str, Any]]:
    """Return the name and the options; the peak is 1 there, so that a floor is a rate."""
    floor = args.floor or 0.0
    match name:
        case "cosine" if floor:
            return "cosine_with_min_lr", {"min_lr_rate": floor}
        case "linear" if floor:
            return "polynomial", {"lr_end": floor, "power": 1.0}
        case "polynomial":
            return name, {"lr_end": floor, "power": 1.0 if args.power is None else args.power}
        case "cosine_with_restarts":
            return name, {"num_cycles": args.cycles or 1}
        case "inverse_sqrt":
            return name, {"timescale": args.timescale}
        case "warmup_stable_decay":
            falls = min(math.ceil(total * (args.decay_share or 0.1)), total - warmup)
            return name, {
                "num_decay_steps": falls, "decay_type": args.decay or "cosine", "min_lr_ratio": floor
            }  # fmt: skip
    return name, {}


def _one_cycle(step: int, total: int, warmup: int) -> float:
    """Return a half cosine up from a 25th to 1, and one down to a 250,000th (Smith 2018, as torch has it)."""
    if total == 1:
        return 1.0
    peak = warmup - 1.0  # the last step of the rise
    if step <= peak:
        return _between(_FIRST, 1.0, step / peak if peak else 1.0)
    return _between(1.0, _LAST, (step - peak) / (total - 1 - peak))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
