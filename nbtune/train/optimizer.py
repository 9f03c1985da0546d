"""The optimizer of a run, from a library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbtune.errors import TrainError

if TYPE_CHECKING:
    import torch


def make_optimizer(
    parameters: Sequence[torch.nn.Parameter],
    name: str,
    *,
    learning_rate: float,
    weight_decay: float | Sequence[float],
) -> torch.optim.Optimizer:
    """Make AdamW.

    Args:
        parameters: what is trained.
        name: ``adamw``, or ``adamw_8bit`` (bitsandbytes).
        weight_decay: one number, or one a parameter (`nbtune.models.weight_decay`).

    Raises:
        TrainError: nothing is trained.
    """
    import torch

    if not parameters:
        raise TrainError("nothing in the model is trained", fix="choose an adapter")
    each = [weight_decay] * len(parameters) if isinstance(weight_decay, int | float) else weight_decay
    by_decay: dict[float, list[torch.nn.Parameter]] = {}
    for parameter, decay in zip(parameters, each, strict=True):
        by_decay.setdefault(decay, []).append(parameter)
    groups = [{"params": some, "weight_decay": decay} for decay, some in by_decay.items()]
    if name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=learning_rate)  # type: ignore[no-any-return]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=parameters[0].device.type in ("cuda", "cpu"))
