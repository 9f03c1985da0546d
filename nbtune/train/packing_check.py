"""Does packing change the loss? Asked of the very first batch of a run, on the very model that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from nbtune.events import Check
from nbtune.train.evaluate import mean_loss

if TYPE_CHECKING:
    import torch

    from nbtune.data.batching.sampler import Batch
    from nbtune.train.loss import LossOutput

__all__ = ["packed_equals_unpacked"]

_TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}


def packed_equals_unpacked(
    model: torch.nn.Module,
    loss: Callable[..., LossOutput],
    packed: Iterable[Batch],
    unpacked: Iterable[Batch],
    *,
    device: torch.device,
) -> Check:
    """Compare the mean loss of the same rows, packed and one by one; both see the same number of trained tokens."""
    ours, tokens = mean_loss(model, loss, packed, device=device)
    alone, tokens_alone = mean_loss(model, loss, unpacked, device=device)
    dtype = str(next(p for p in model.parameters() if p.is_floating_point()).dtype).removeprefix("torch.")
    close = abs(ours - alone) <= _TOLERANCE.get(dtype, 2e-2) * max(1.0, abs(alone))
    detail = f"loss {ours:.5f} packed, {alone:.5f} one by one, over {tokens} trained tokens"
    if tokens != tokens_alone:
        detail = f"{tokens} trained tokens packed, {tokens_alone} one by one"
    return Check(name="packed equals unpacked", passed=close and tokens == tokens_alone, detail=detail)
