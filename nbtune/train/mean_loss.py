"""The mean loss of held-out rows, token by token (or pair by pair)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


def torn_update() -> NumbersLost:
    """Return the error of a run whose memory was short while its weights were changed: some are, and some are not."""
    return NumbersLost(
        "memory was short in the middle of an update: some weights have changed, and some have not",
        fix="resume it: it goes on from its last checkpoint; with an `optim` of less state, as adafactor, it may fit",
    )


def trained_tokens(batch: Batch) -> int:
    """Return what most losses are a mean over."""
    return batch.num_trained


def trained_weight(batch: Batch) -> float:
    """Return what a loss over tokens is a mean over, where rows may count more or less than once."""
    return batch.weight


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation found, by the names that `nbtune.events.Eval` has for it."""

    loss: float
    tokens: int
    seconds: float
    sources: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What was found of some rows, by all processes that measure together.

    Attributes:
        loss: mean over `counted`; NaN where there was nothing.
        counted: what it is a mean over: tokens, pairs or answers, as often as each counts.
        tokens: trained ones.
        figures: of each of the loss's figures the sum over the rows that have one, and how many these are.
    """

    loss: float
    counted: float
    tokens: int
    figures: dict[str, tuple[float, float]]

    @property
    def metrics(self) -> dict[str, float]:
        """The means of the figures that some row has."""
        return shown({name: total / count for name, (total, count) in self.figures.items() if count})


def shown(figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures as they are told: those of one name with several parts (``f1:0``, ``f1:1``) as their mean.

    >>> shown({"accuracy": 0.5, "f1:0": 0.25, "f1:1": 0.75})
    {'accuracy': 0.5, 'f1': 0.5}
    """
    parts: dict[str, list[float]] = {}
    for name, value in figures.items():
        if math.isfinite(value):
            parts.setdefault(name.partition(":")[0], []).append(value)
    return {name: sum(values) / len(values) for name, values in parts.items()}


def overall(parts: Sequence[Measured]) -> Measured:
    """Return what was found of several parts as of all of their rows."""
    counted, figures = sum(part.counted for part in parts), [part.figures for part in parts]
    loss = sum(part.loss * part.counted for part in parts if part.counted) / counted if counted else math.nan
    names = figures[0] if figures else ()
    added = {name: (sum(one[name][0] for one in figures), sum(one[name][1] for one in figures)) for name in names}
    return Measured(loss, counted, sum(part.tokens for part in parts), added)


def mean_loss(
    model: torch.nn.Module,
    loss: Loss,
    batches: Callable[[], Iterable[Batch]],
    *,
    device: torch.device,
    count: Callable[[Batch], float] | None = None,
    add: Callable[[Sequence[float]], Sequence[float]] = list,
    gather: Gather | None = None,
) -> Measured:
    """Return the mean loss over all trained tokens of the batches, and what comes with it; the model is left as it was.

    Args:
        batches: gives them, twice to a loss that looks ahead, which is told of all of them what it asks of a step.
        count: what the loss of a batch is a sum over, if not what the loss says.
        add: adds numbers up over the processes that measure together.
        gather: what each of these gives.
    """
    import torch

    from nbtune.train.look_ahead import joined

    training, tokens, counted = model.training, 0, 0.0
    count, names = loss.count if count is None else count, loss.figures
    total, figures = torch.zeros((), device=device), torch.zeros(2, len(names), device=device)
    model.eval()
    try:
        with torch.no_grad():
            surveys = [loss.survey(model, batch, device=device) for batch in batches()] if loss.looks_ahead else []
            step = joined(surveys, device, gather) if loss.looks_ahead else None
            for batch in batches():
                if batch.num_trained or batch.idle_pass:
                    part = loss(model, batch, denominator=1, device=device, step=step)
                    total = total + part.loss.float()
                    figures = figures if part.figures is None else figures + part.figures
                    tokens, counted = tokens + batch.num_trained, counted + count(batch)
    finally:
        model.train(training)
    summed, tokens, counted, *rest = add([float(total), tokens, counted, *figures.flatten().tolist()])  # type: ignore[assignment]
    sums = dict(zip(names, zip(rest[: len(names)], rest[len(names) :], strict=True), strict=True))
    return Measured(summed / counted if counted else math.nan, counted, tokens, sums)
