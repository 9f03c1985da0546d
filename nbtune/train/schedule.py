"""The learning rate of a step, as transformers' schedules define it, without state: resume needs the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable


def learning_rate_of(name: str, *, total_steps: int, warmup_ratio: float) -> Callable[[int], float]:
    """Return a function of the 0-based step that gives the factor for the peak learning rate.

    Args:
        name: ``linear``, ``cosine``, ``constant`` or ``constant_with_warmup``, with the meaning they have in
            `transformers.get_scheduler`.
        total_steps: optimizer steps of the whole run.
        warmup_ratio: share of them in which the factor rises from 0 to 1.
    """
    import torch
    from transformers import get_scheduler

    parameter = torch.nn.Parameter(torch.zeros(()))
    warmup = math.ceil(total_steps * warmup_ratio)
    schedule = get_scheduler(
        name, torch.optim.SGD([parameter], lr=1.0), num_warmup_steps=warmup, num_training_steps=total_steps
    )
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return lambda step: float(factor(step))
