"""Losses as the loop calls them, of a model and a batch: each made from a `nbtune.methods.Method`.

    loss = loss_of(METHODS[spec.method], options=options_of(spec))
    loss(model, batch, denominator=loss.count(batch), device=device).loss.backward()

Where the denominator is the sum of `count` over a step's micro-batches, and a loss that `looks_ahead` is given what it
asked for of all of them, accumulation changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch.nn.functional import cross_entropy

from nbtune.device.streams import send
from nbtune.methods import Answers, Method
from nbtune.train.inputs import model_inputs
from nbtune.train.kept_reference import KeptReference
from nbtune.train.logprobs import Asking, answers_of
from nbtune.train.look_ahead import survey
from nbtune.train.scores import judged, scores_of

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch


class Loss(Protocol):
    """A loss as the loop calls it."""

    @property
    def figures(self) -> tuple[str, ...]:
        """What it tells of a step besides, by name."""

    @property
    def looks_ahead(self) -> bool:
        """Whether it wants to know something of all of a step before it can say what one micro-batch loses."""

    def survey(self, model: torch.nn.Module, batch: Batch, *, device: torch.device) -> Answers | None:
        """Ask that of a micro-batch, without gradients (`nbtune.train.look_ahead` joins what is found)."""

    def count(self, batch: Batch) -> float:
        """Return what the losses of an optimizer step are divided by the sum of."""

    def __call__(
        self,
        model: torch.nn.Module,
        batch: Batch,
        *,
        denominator: float,
        device: torch.device,
        step: Answers | None = None,
    ) -> LossOutput:
        """Return Σ loss / denominator.

        Args:
            step: what was found in advance of all micro-batches of the step; None: this one is all of them.
        """


@dataclass(frozen=True)
class LossOutput:
    """What a micro-batch loses.

    Attributes:
        loss: a scalar, the sum over its trained tokens (or pairs, or answers) divided by the denominator it was given.
        figures: `[2, F]` without gradients, of each of the loss's `figures` the sum over the rows that have one, and
            how many these are, each as often as it counts; None where it has none.
    """

    loss: torch.Tensor
    figures: torch.Tensor | None = None


def loss_of(
    method: Method,
    *,
    options: Mapping[str, float | str] | None = None,
    fused: bool = False,
    asking: Asking | None = None,
    outputs: int = 1,
    balance: float | None = None,
) -> TokenLoss | AnswerLoss:
    """Return the loss of a method.

    Args:
        options: instead of the method's own, as `nbtune.spec.loss_options.options_of` reads them.
        fused, balance: see `TokenLoss`.
        asking, outputs: see `AnswerLoss`.
    """
    if method.by_tokens:
        told = {**method.options, **(options or {})}
        return TokenLoss(fused, float(told.get("label_smoothing", 0)), float(told.get("z_loss", 0)), balance)
    return AnswerLoss(method, options or {}, asking or Asking(), outputs)


class OfTokens:
    """What the losses of single tokens have in common: see `Loss`."""

    looks_ahead: ClassVar[bool] = False

    def survey(self, model: torch.nn.Module, batch: Batch, *, device: torch.device) -> None:
        """Ask nothing: a token's loss depends on no other row."""

    def count(self, batch: Batch) -> float:
        """Return what the losses of an optimizer step are divided by the sum of: trained tokens, as often as they
        count."""
        return batch.weight


def trained_logits(model: torch.nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """Return fp32 logits `[R, vocabulary]` of what predicts `batch.trained_labels`."""
    return _of_trained(model(**model_inputs(batch, device, labels=False), use_cache=False), batch, device)


def _of_trained(said: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    logits: torch.Tensor = said.logits
    return logits.flatten(0, 1)[send(batch.trained_rows, device)].float()


@dataclass(frozen=True)
class TokenLoss(OfTokens):
    """Cross-entropy of the trained tokens: Σ −w log p(label) / denominator, w the weight of the label's row.

    What is added to it is for training: a model in evaluation mode is asked for the plain one, so that held-out losses
    can be compared.

    Args:
        fused: the model's head is nbtune's own, see `model_inputs`.
        smoothing: of each target so much is shared among all tokens (Szegedy et al. 2016, section 7).
        z_loss: so much of log² Σ exp(logits) is added (Chowdhery et al. 2022, "PaLM", section 5).
        balance: so much of what the model says of how evenly its routers choose is added, by its config
            (`nbtune.models.accelerate.detect.balance_of`), of each micro-batch by its share of the step; None: it says
            nothing.
    """

    fused: bool = False
    smoothing: float = 0.0
    z_loss: float = 0.0
    balance: float | None = None

    @property
    def figures(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `Loss`."""
        return () if self.balance is None else ("aux_loss",)

    def __call__(
        self,
        model: torch.nn.Module,
        batch: Batch,
        *,
        denominator: float,
        device: torch.device,
        step: Answers | None = None,
    ) -> LossOutput:
        """Return Σ loss / denominator.

        Args:
            model: gives an object with `.loss` when called with `labels` and `num_items_in_batch`, as transformers' do.
            batch: input_ids [B, S], labels [B, S] (−100: not trained), unshifted.
            denominator: the sum of `count` over the optimizer step, so that accumulated micro-batches equal one.
            device: where the model is.
        """
        more = model.training and (self.smoothing > 0 or self.z_loss > 0)
        if not more and (self.fused or batch.loss_weights is None):
            inputs = model_inputs(batch, device, fused=self.fused)
            said = model(**inputs, num_items_in_batch=denominator, use_cache=False)
            return self._with_balance(said, said.loss, batch, denominator, training=model.training, added=1.0)
        labels, smoothing = send(batch.trained_labels, device), self.smoothing if more else 0.0
        said = model(**model_inputs(batch, device, labels=False), use_cache=False)
        logits = _of_trained(said, batch, device)
        losses = cross_entropy(logits, labels, ignore_index=-100, reduction="none", label_smoothing=smoothing)
        if more and self.z_loss:
            losses = losses + self.z_loss * logits.logsumexp(-1).square() * (labels != -100)
        weights = batch.loss_weights
        loss = losses.sum() if weights is None else torch.dot(losses, send(weights, device))
        return self._with_balance(said, loss / denominator, batch, denominator, training=model.training, added=0.0)

    def _with_balance(
        self, said: Any, loss: torch.Tensor, batch: Batch, denominator: float, *, training: bool, added: float
    ) -> LossOutput:
        """Return a loss with what is said of routers, in which so much of that is already."""
        aux = getattr(said, "aux_loss", None)
        if self.balance is None or not isinstance(aux, torch.Tensor):
            return LossOutput(loss=loss)
        share = batch.weight / denominator if training else 0.0
        told = torch.stack([aux.detach().float() * batch.weight, aux.new_full((), batch.weight, dtype=torch.float32)])
        return LossOutput(loss=loss + (share - added) * self.balance * aux, figures=told[:, None])


@dataclass(frozen=True)
class AnswerLoss:
    """A method's loss of whole answers: the model is asked for their log-probabilities, the method for the loss.

    Args:
        options: instead of the method's own, such as ``beta``.
        asking: how the model is asked, and what a method's reference is.
        outputs: of the head, for methods with one.
    """

    method: Method
    options: Mapping[str, float | str] = field(default_factory=dict)
    asking: Asking = field(default_factory=Asking)
    outputs: int = 1

    @cached_property
    def figures(self) -> tuple[str, ...]:
        """Ask the method, with two answers that nobody gave, what it tells besides the loss."""
        made_up = torch.full((2,), -1.0)
        judged_so, scores = torch.tensor([1.0, 0.0]), torch.zeros(2, self.outputs)
        return tuple(self._figures(Answers(made_up, -made_up, reference=made_up, values=judged_so, scores=scores)))

    def _figures(self, answers: Answers) -> Mapping[str, torch.Tensor | tuple[torch.Tensor, torch.Tensor]]:
        if self.method.metrics is None:
            return {}
        return self.method.metrics(*self.method.sides(answers.detached()), **{**self.method.options, **self.options})

    @property
    def kept(self) -> KeptReference | None:
        """What the reference has said so far, where it is kept."""
        return self.asking.kept

    @property
    def looks_ahead(self) -> bool:
        """See `Loss`."""
        return self.method.looks_ahead

    def survey(self, model: torch.nn.Module, batch: Batch, *, device: torch.device) -> Answers:
        """See `Loss`."""
        return survey(
            batch,
            self.method,
            device=device,
            ask=lambda one: answers_of(model, one, self.method, device=device, asking=self.asking),
        )

    def count(self, batch: Batch) -> float:
        """Return what the losses of an optimizer step are divided by the sum of: pairs, or answers, as often as they
        count."""
        every = self.method.group
        if self.method.head == "token":
            places, _, weights = judged(batch, self.method)
            return len(places) if weights is None else float(weights.double().sum())
        if batch.example_weights is not None:
            return float(batch.example_weights[::every].double().sum())
        return len(batch.examples) // every

    def __call__(
        self,
        model: torch.nn.Module,
        batch: Batch,
        *,
        denominator: float,
        device: torch.device,
        step: Answers | None = None,
    ) -> LossOutput:
        """Return Σ loss / denominator.

        Args:
            model, batch: see `nbtune.train.logprobs.answers_of`.
            denominator: the sum of `count` over the optimizer step.
            device: where the model is.
            step: see `Loss`.
        """
        method = self.method
        if step is None and self.looks_ahead:
            step = self.survey(model, batch, device=device)
        if method.head:
            answers = scores_of(model, batch, method, device=device)
        else:
            others = None if step is None else step.mismatched
            answers = answers_of(model, batch, method, device=device, asking=self.asking, mismatched=others, step=step)
        return self.of_answers(answers, denominator)

    def of_answers(self, answers: Answers, denominator: float | torch.Tensor) -> LossOutput:
        """Return Σ loss / denominator of answers that the model was asked for."""
        method, options = self.method, {**self.method.options, **self.options}
        assert not isinstance(method.loss, str)
        each = method.loss(*method.sides(answers), **options)
        if answers.weights is not None:
            each = each * answers.weights[:: method.group]
        return LossOutput(loss=each.sum() / denominator, figures=self._sums(answers))

    def _sums(self, answers: Answers) -> torch.Tensor | None:
        if not self.figures:
            return None
        found = self._figures(answers)
        told = [found[name] for name in self.figures]
        ratios = [one if isinstance(one, tuple) else (one.nan_to_num(), (~one.isnan()).float()) for one in told]
        values, counts = (torch.stack([one[k] for one in ratios]) for k in (0, 1))
        if answers.weights is not None:
            values, counts = (part * answers.weights[:: self.method.group] for part in (values, counts))
        return torch.stack([values.sum(1), counts.sum(1)])


@dataclass(frozen=True)
class UnlessIdle:
    """A loss of which `Batch.idle` ones are nothing, whatever is in them; they go through the model all the same."""

    of: Loss

    @property
    def figures(self) -> tuple[str, ...]:
        """See `Loss`."""
        return self.of.figures

    @property
    def looks_ahead(self) -> bool:
        """See `Loss`."""
        return self.of.looks_ahead

    def survey(self, model: torch.nn.Module, batch: Batch, *, device: torch.device) -> Answers | None:
        """See `Loss`."""
        survey = self.of.survey(model, batch, device=device)
        return None if batch.idle_pass else survey

    def count(self, batch: Batch) -> float:
        """See `Loss`."""
        return 0 if batch.idle_pass else self.of.count(batch)

    def __call__(
        self,
        model: torch.nn.Module,
        batch: Batch,
        *,
        denominator: float,
        device: torch.device,
        step: Answers | None = None,
    ) -> LossOutput:
        """See `Loss`."""
        output = self.of(model, batch, denominator=denominator, device=device, step=step)
        return LossOutput(output.loss * 0.0) if batch.idle_pass else output
