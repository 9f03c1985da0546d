"""The optimizer of a run, from a library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbtune.errors import TrainError

if TYPE_CHECKING:
    import torch

__all__ = ["make_optimizer"]


def make_optimizer(
    parameters: Sequence[torch.nn.Parameter], name: str, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW.

    Args:
        parameters: what is trained.
        name: ``adamw``, or ``adamw_8bit`` (bitsandbytes).

    Raises:
        TrainError: nothing is trained.
    """
    import torch

    if not parameters:
        raise TrainError("nothing in the model is trained", fix="choose an adapter")
    if name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)  # type: ignore[no-any-return]
    fused = parameters[0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)
