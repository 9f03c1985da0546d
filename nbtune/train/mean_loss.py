"""The mean loss of held-out rows, token by token (or pair by pair)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from nbtune.errors import TrainError

if TYPE_CHECKING:
    import torch

    from nbtune.data.batching.collate import Batch
    from nbtune.train.look_ahead import Gather
    from nbtune.train.loss import Loss


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
    loss: Loss,
    batches: Callable[[], Iterable[Batch]],
    *,
    device: torch.device,
    count: Callable[[Batch], float] | None = None,
    add: Callable[[Sequence[float]], Sequence[float]] = list,
    gather: Gather | None = None,
) -> tuple[float, int]:
    """Return (mean loss over all trained tokens of the batches, how many those are); the model is left as it was.

    Args:
        batches: gives them, twice to a loss that looks ahead, which is told of all of them what it asks of a step.
        count: what the loss of a batch is a sum over, if not what the loss says.
        add: adds numbers up over the processes that measure together.
        gather: what each of these gives.
    """
    import torch

    from nbtune.train.look_ahead import joined

    training, total, tokens, counted = model.training, None, 0, 0.0
    count = loss.count if count is None else count
    model.eval()
    try:
        with torch.no_grad():
            found = [loss.survey(model, batch, device=device) for batch in batches()] if loss.looks_ahead else []
            step = joined(found, device, gather) if loss.looks_ahead else None
            for batch in batches():
                if batch.num_trained or batch.idle_pass:
                    part = loss(model, batch, denominator=1, device=device, step=step).loss.float()
                    total = part if total is None else total + part
                    tokens, counted = tokens + batch.num_trained, counted + count(batch)
    finally:
        model.train(training)
    summed, tokens, counted = add([0.0 if total is None else float(total), tokens, counted])  # type: ignore[assignment]
    return (summed / counted if counted else float("nan")), tokens
