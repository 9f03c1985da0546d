"""What a loss must know of a whole optimizer step before it can say that of a micro-batch of it.

Asked without gradients, of each micro-batch, and joined over micro-batches and processes: a step's loss and gradients
are then those of one micro-batch of all rows, however it is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from nbtune.device.streams import send
from nbtune.methods import Answers, Method
from nbtune.train.attempt import Attempt
from nbtune.train.logprobs import tokens_of

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch
    from nbtune.models.experts.choices import Choices

Gather = Callable[[Any], list[Any]]


def survey(batch: Batch, method: Method, *, device: torch.device, ask: Callable[[Batch], Answers]) -> Answers:
    """Return what a method wants to know of a micro-batch in advance; what it does not ask for is NaN.

    Args:
        device: where the model is.
        ask: what it says of a batch's answers.
    """
    with torch.no_grad():
        others = None
        if method.mismatched and batch.mismatched is not None:
            said = ask(batch.mismatched)
            others = Answers(said.logprobs, said.tokens, said.reference)
        if method.of_step == "answers":
            return replace(ask(batch), mismatched=others)
    tokens = send(tokens_of(batch), device)
    weights = None if batch.example_weights is None else send(batch.example_weights, device)
    return Answers(torch.full_like(tokens, torch.nan), tokens, weights=weights, mismatched=others)


class LooksAhead:
    """Of a stepper: what its loss wants to know of a step, asked before the step's first micro-batch."""

    device: torch.device
    learning_rate: float | None = None
    """Of the step that is accumulated; the loop says it before the first micro-batch."""
    _of_step: Answers | None = None
    _gather: Gather | None = None
    choices: Choices | None = None  # of a mixture's routers

    def _of_experts(self) -> dict[str, torch.Tensor]:
        """Return what a step tells of a mixture's routers; of several processes' this one's rows."""
        return {} if self.choices is None else self.choices.told()

    def _surveys(self) -> Callable[[Batch], Answers | None] | None:
        """Return what asks it of a micro-batch; None: the loss wants to know nothing."""
        raise NotImplementedError

    def _drawing(self, step: int, micro_step: int) -> AbstractContextManager[None]:
        """Let these alone decide what is drawn within."""
        raise NotImplementedError

    def look_ahead(self, batches: Iterable[Batch], *, step: int) -> None:
        """Ask what the loss wants to know of all of a step's micro-batches, before the first of them."""
        ask = self._surveys()
        if ask is None:
            return
        surveys: list[Answers | None] = []
        with Attempt() as attempt:
            for micro_step, batch in enumerate(batches):
                with self._drawing(step, micro_step):  # as when its gradients are taken
                    surveys.append(ask(batch))
        self._of_step = joined(surveys, self.device, self._gather)  # other processes wait for it, whatever was short
        if attempt.short:
            raise MemoryError


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
