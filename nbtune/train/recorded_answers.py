"""A loss of whole answers as a function of tensors alone, so that its steps can be recorded.

What a recording may not do, looking at numbers on the host and copying them to the device, is done before: which
answers a batch has, how often each counts, and what the loss wants to know of all of the step (`look_ahead`), goes in
as tensors of few shapes. Packs have now more, now fewer answers: made-up ones, which count nothing, fill them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nbtune.methods import Answers
from nbtune.train.kept_reference import Known
from nbtune.train.logprobs import HOST, answers_to, question

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch
    from nbtune.models.cuda_graph_step import TrainStep
    from nbtune.train.loss import AnswerLoss

_ANSWERS = 64  # the number of a pack's answers is rounded up to multiples


class RecordedAnswers:
    """What `nbtune.models.cuda_graph_step.TrainStep` takes as its loss, of an `AnswerLoss`."""

    def __init__(self, loss: AnswerLoss) -> None:
        self.loss = loss

    def inputs(self, batch: Batch, denominator: float, step: Answers | None) -> dict[str, Any]:
        """Return all that a micro-batch's loss depends on but the model; on the host, but for what was asked before.

        Args:
            denominator, step: see `nbtune.train.loss.Loss`.
        """
        asked = {**question(batch, HOST, share=self.loss.asking.share), "denominator": torch.tensor(float(denominator))}
        known = self._known(batch)
        if known is not None and known.values is not None:
            asked["answers.reference"] = known.values
        if batch.cu_seqlens is not None:
            asked |= _filled(asked)
        if step is not None:
            asked |= _named("step", step)  # not filled up: a method may take a mean of these
        return asked

    def __call__(self, model: nn.Module, asked: dict[str, Any]) -> Tensor:
        """Return the loss `[]`, or with the sums and counts of its figures `[1 + 2F]`; behind it what the reference has
        said, where that is new and to be kept."""
        answers = self._answers(model, asked)
        told = self.loss.of_answers(answers, asked["denominator"])
        parts = [told.loss.float().reshape(1)]
        parts += [] if told.figures is None else [told.figures.flatten()]
        if self._keeps and "answers.reference" not in asked and answers.reference is not None:
            parts.append(answers.reference)
        return told.loss if len(parts) == 1 else torch.cat(parts)

    @property
    def _keeps(self) -> bool:
        return self.loss.kept is not None and self.loss.method.reference

    def _known(self, batch: Batch) -> Known | None:
        return self.loss.kept.of(batch) if self.loss.kept is not None and self.loss.method.reference else None

    def kept(self, batch: Batch, told: Tensor) -> Tensor:
        """Return what a step told of a batch without what the reference has said, which is kept."""
        size = 1 + 2 * len(self.loss.figures)
        if not told.ndim or len(told) == size:
            return told
        if self.loss.kept is not None and (known := self._known(batch)) is not None:
            self.loss.kept.keep(known, told[size:])
        return told[:size] if size > 1 else told[0]

    def _answers(self, model: nn.Module, asked: dict[str, Any]) -> Answers:
        found = answers_to(model, asked, self.loss.method, self.loss.asking.start)
        made_up, step = asked.get("answers.made_up"), _unnamed("step", asked)
        if made_up is not None:  # of probability 1/e and one token: no loss or figure of such is no number
            reference = None if found.reference is None else found.reference - made_up
            found = replace(
                found, logprobs=found.logprobs - made_up, tokens=found.tokens + made_up, reference=reference
            )
        return replace(found, mismatched=None if step is None else step.mismatched, step=step)

    def ask(self, step: TrainStep, batch: Batch) -> Answers:
        """Return what the model and the reference say of a batch's answers, recorded where shapes repeat."""

        def answer(model: nn.Module, asked: dict[str, Any]) -> Tensor:
            found = self._answers(model, asked)
            rows = [found.logprobs, found.tokens, found.reference]
            return torch.stack([row for row in rows if row is not None])

        asked = self.inputs(batch, 1.0, None)
        said = [row[: len(batch.examples)] for row in step.ask("ask", asked, answer)]
        if self.loss.kept is not None and len(said) > 2 and (known := self._known(batch)) is not None:
            self.loss.kept.keep(known, said[2])
        judged, weights = (None if t is None else t.to(step.device) for t in (batch.values, batch.example_weights))
        values = None if self.loss.method.pairwise else judged
        return Answers(said[0], said[1], said[2] if len(said) > 2 else None, values, weights)


def _filled(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what there is of a pack's answers with made-up ones behind."""
    count = asked["answers.count"]
    more = -count % _ANSWERS
    real, none = torch.ones(count), torch.zeros(more)
    filled = {
        "answers.count": count + more,
        "answers.made_up": torch.cat([1 - real, none + 1]),
        "answers.weights": torch.cat([asked.get("answers.weights", real), none]),
    }
    for name in ("answers.values", "answers.reference"):
        if name in asked:
            filled[name] = torch.cat([asked[name], none.to(asked[name].device)])
    return filled


def _named(name: str, answers: Answers) -> dict[str, Any]:
    """Return the tensors of answers as inputs of a step."""
    found: dict[str, Any] = {}
    for field in fields(answers):
        value = getattr(answers, field.name)
        if isinstance(value, Answers):
            found |= _named(f"{name}.{field.name}", value)
        elif value is not None:
            found[f"{name}.{field.name}"] = value
    return found


def _unnamed(name: str, asked: Mapping[str, Any]) -> Answers | None:
    """Undo `_named`."""
    if f"{name}.tokens" not in asked:
        return None
    given = {field.name: asked.get(f"{name}.{field.name}") for field in fields(Answers)}
    return Answers(**{**given, "mismatched": _unnamed(f"{name}.mismatched", asked)})
