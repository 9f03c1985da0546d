"""The mean loss of held-out rows, token by token (or pair by pair)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from nbtune.errors import TrainError

if TYPE_CHECKING:
    import torch

    from nbtune.data.batching.collate import Batch
    from nbtune.train.loss import LossOutput


class NumbersLost(TrainError):
    """The model in memory is good for nothing any more; what was saved of it is."""


def no_number(what: str, step: int) -> NumbersLost:
    """Return the error of a run whose numbers are lost.

    Args:
        what: which: "the loss".
    """
    return NumbersLost(
        f"{what} is no number any more (step {step})",
        fix="start again with a lower `learning_rate`, or with `dtype: fp32` where 16 bits cannot hold the numbers; "
        "checkpoints from before are good and stay",
    )


def trained_tokens(batch: Batch) -> int:
    """Return what most losses are a mean over."""
    return batch.num_trained


def trained_weight(batch: Batch) -> float:
    """Return what a loss over tokens is a mean over, where rows may count more or less than once."""
    return batch.weight


def mean_loss(
    model: torch.nn.Module,
    loss: Callable[..., LossOutput],
    batches: Iterable[Batch],
    *,
    device: torch.device,
    count: Callable[[Batch], float] = trained_weight,
    add: Callable[[Sequence[float]], Sequence[float]] = list,
) -> tuple[float, int]:
    """Return (mean loss over all trained tokens of the batches, how many those are); the model is left as it was.

    Args:
        count: what the loss of a batch is a sum over, if not its trained tokens.
        add: adds numbers up over the processes that measure together.
    """
    import torch

    training, total, tokens, counted = model.training, None, 0, 0.0
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                if batch.num_trained or batch.idle_pass:
                    part = loss(model, batch, denominator=1, device=device).loss.float()
                    total = part if total is None else total + part
                    tokens, counted = tokens + batch.num_trained, counted + count(batch)
    finally:
        model.train(training)
    summed, tokens, counted = add([0.0 if total is None else float(total), tokens, counted])  # type: ignore[assignment]
    return (summed / counted if counted else float("nan")), tokens
