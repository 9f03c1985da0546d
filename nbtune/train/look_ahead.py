"""What a loss must know of a whole optimizer step before it can say that of a micro-batch of it.

Asked without gradients, of each micro-batch, and joined over micro-batches and processes: a step's loss and gradients
are then those of one micro-batch of all rows, however it is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from nbtune.device.streams import send
from nbtune.methods import Answers, Method
from nbtune.train.logprobs import answers_of, reference_of, score_answers, tokens_of
from nbtune.train.reference import StartingWeights

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch

Gather = Callable[[Any], list[Any]]


@torch.no_grad()
def survey(
    model: torch.nn.Module,
    batch: Batch,
    method: Method,
    *,
    device: torch.device,
    start: StartingWeights | None = None,
) -> Answers:
    """Return what a method wants to know of a micro-batch in advance; what it does not ask for is NaN.

    Args:
        model, batch, device, start: see `nbtune.train.logprobs.answers_of`.
    """
    other = batch.mismatched if method.mismatched else None
    others = None if other is None else _mismatched(model, other, method, device, start)
    if method.of_step == "answers":
        return answers_of(model, batch, method, device=device, start=start, mismatched=others)
    tokens = send(tokens_of(batch), device)
    weights = None if batch.example_weights is None else send(batch.example_weights, device)
    return Answers(torch.full_like(tokens, torch.nan), tokens, weights=weights, mismatched=others)


def _mismatched(
    model: torch.nn.Module, batch: Batch, method: Method, device: torch.device, start: StartingWeights | None
) -> Answers:
    reference = reference_of(model, batch, method, device, start)
    return Answers(*score_answers(model, batch, device=device), reference)


def joined(parts: Sequence[Answers | None], device: torch.device, gather: Gather | None = None) -> Answers | None:
    """Return the answers of all micro-batches as one; None where there are none.

    Args:
        gather: what each of several processes gives, in their order; all must call this.
    """
    mine = _joined(parts)
    if gather is None:
        return mine
    survey = _joined(gather(None if mine is None else mine.to("cpu")))
    return None if survey is None else survey.to(device)


def _joined(parts: Sequence[Answers | None]) -> Answers | None:
    known_parts = [part for part in parts if part is not None]
    if not known_parts:
        return None
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Answers)):
        given = [value for part in known_parts if (value := getattr(part, name)) is not None]
        if given:
            values[name] = _joined(given) if isinstance(given[0], Answers) else torch.cat(given)
    return Answers(**values)
