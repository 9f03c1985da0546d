"""How well a model knows rows: the loss of each one's trained tokens, by forwards alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nbtune.generate.sampling import without_adapter

if TYPE_CHECKING:
    import torch

_AT_ONCE = 4096  # tokens, with padding


def row_losses(
    model: torch.nn.Module, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], *, adapter: bool = True
) -> list[float]:
    """Return of each row Σ −ln p(token | those before it) over its trained tokens, in nats.

    Args:
        model: a causal language model, in training or not; it is left in the mode it was in.
        rows: each one's tokens, and which of them are trained (the first never is: nothing predicts it).
        adapter: False asks the base without its adapter.
    Raises:
        TrainError: the base is asked for, and every weight was trained: it is not there any more.
    """
    import torch

    from nbtune.data.batching.collate import collate
    from nbtune.data.prepare.dataset import Builder
    from nbtune.train.logprobs import score_answers

    if not rows:
        return []
    builder = Builder(["rows"])
    for number, (ids, trained) in enumerate(rows):
        builder.add(np.asarray(ids, np.int32), np.asarray(trained, bool), 0, number)
    dataset, device = builder.build(), next(model.parameters()).device
    losses, training = [0.0] * len(rows), model.training
    with torch.no_grad(), without_adapter(model, adapter):
        model.eval()
        try:
            for chosen in _batches(dataset.lengths):
                logprobs, _ = score_answers(model, collate(dataset, chosen), device=device)
                for number, value in zip(chosen, logprobs.tolist(), strict=True):
                    losses[number] = -value
        finally:
            model.train(training)
    return losses


def _batches(lengths: np.ndarray) -> Iterator[list[int]]:
    """Yield rows of like length, so many that they have at most `_AT_ONCE` tokens together."""
    batch: list[int] = []
    for number in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * int(lengths[number]) > _AT_ONCE:
            yield batch
            batch = []
        batch.append(number)
    yield batch
