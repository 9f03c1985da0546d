"""Losses as the loop calls them, of a model and a batch: each made from a `nbtune.methods.Method`.

    loss = loss_of(METHODS[spec.method], beta=spec.beta)
    loss(model, batch, denominator=loss.count(batch), device=device).loss.backward()

Where the denominator is the sum of `count` over a step's micro-batches, accumulation changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from nbtune.device import send
from nbtune.methods import Method
from nbtune.train.inputs import model_inputs
from nbtune.train.logprobs import ask
from nbtune.train.reference import StartingWeights

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch


@dataclass(frozen=True)
class LossOutput:
    """`loss` is a scalar, the sum over this micro-batch's trained tokens divided by the denominator it was given."""

    loss: torch.Tensor


def loss_of(
    method: Method, *, beta: float | None = None, fused: bool = False, start: StartingWeights | None = None
) -> TokenLoss | AnswerLoss:
    """Return the loss of a method.

    Args:
        beta: instead of the method's own.
        fused: see `TokenLoss`.
        start: see `AnswerLoss`.
    """
    if method.by_tokens:
        return TokenLoss(fused)
    return AnswerLoss(method, {} if beta is None else {"beta": beta}, start)


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy of the trained tokens: Σ −w log p(label) / denominator, w the weight of the label's row.

    Args:
        fused: the model's head is nbtune's own, see `model_inputs`.
    """

    fused: bool = False

    def count(self, batch: Batch) -> float:
        """Return what the losses of an optimizer step are divided by the sum of: trained tokens, as often as they
        count."""
        return batch.weight

    def __call__(self, model: torch.nn.Module, batch: Batch, *, denominator: float, device: torch.device) -> LossOutput:
        """Return Σ loss / denominator.

        Args:
            model: gives an object with `.loss` when called with `labels` and `num_items_in_batch`, as transformers' do.
            batch: input_ids [B, S], labels [B, S] (−100: not trained), unshifted.
            denominator: the sum of `count` over the optimizer step, so that accumulated micro-batches equal one.
            device: where the model is.
        """
        inputs = model_inputs(batch, device, fused=self.fused)
        if batch.loss_weights is None or self.fused:
            return LossOutput(loss=model(**inputs, num_items_in_batch=denominator, use_cache=False).loss)
        del inputs["labels"]
        rows, labels, weights = (
            send(t, device) for t in (batch.trained_rows, batch.trained_labels, batch.loss_weights)
        )
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[rows].float()
        losses = cross_entropy(logits, labels, ignore_index=-100, reduction="none")
        return LossOutput(loss=torch.dot(losses, weights) / denominator)


@dataclass(frozen=True)
class AnswerLoss:
    """A method's loss of whole answers: the model is asked for their log-probabilities, the method for the loss.

    Args:
        options: instead of the method's own, such as ``beta``.
        start: what the run started with, where that is not the base; a method's reference is the model with it.
    """

    method: Method
    options: Mapping[str, float] = field(default_factory=dict)
    start: StartingWeights | None = None

    def count(self, batch: Batch) -> float:
        """Return what the losses of an optimizer step are divided by the sum of: pairs, or answers, as often as they
        count."""
        every = self.method.group
        if batch.example_weights is not None:
            return float(batch.example_weights[::every].double().sum())
        return len(batch.examples) // every

    def __call__(self, model: torch.nn.Module, batch: Batch, *, denominator: float, device: torch.device) -> LossOutput:
        """Return Σ loss / denominator.

        Args:
            model, batch: see `nbtune.train.logprobs.ask`.
            denominator: the sum of `count` over the optimizer step.
            device: where the model is.
        """
        method, options = self.method, {**self.method.options, **self.options}
        answers = ask(model, batch, method, device=device, start=self.start)
        assert not isinstance(method.loss, str)
        each = method.loss(*method.sides(answers), **options)
        if batch.example_weights is not None:
            each = each * send(batch.example_weights[:: method.group], device)
        return LossOutput(loss=each.sum() / denominator)
