"""Losses of methods that learn from judgements: which of two answers is better, or whether an answer is good.

With r(x, y) = log π(y | x) - log π_ref(y | x), |y| the tokens of an answer, w the better and l the worse one:

    dpo     -log σ(β (r_w - r_l))                                      Rafailov et al. 2023, arXiv 2305.18290
    ipo     (r_w / |w| - r_l / |l| - 1 / 2β)^2                         Azar et al. 2023, arXiv 2310.12036
    orpo    -log π(w) / |w| - β log σ(odds(w) - odds(l)),              Hong et al. 2024, arXiv 2403.07691
            odds(y) = a - log(1 - e^a), a = log π(y) / |y|
    simpo   -log σ(β (log π(w) / |w| - log π(l) / |l|) - γ)            Meng et al. 2024, arXiv 2405.14734
    kto     λ (1 - σ(±β (r - z))), z = max(0, mean r of answers        Ethayarajh et al. 2024, arXiv 2402.01306
            under other rows' prompts)
    reward  -log σ(s_w - s_l - margin) + c (s_w + s_l)^2               Bradley & Terry 1952

The functions of numbers come first; `PreferenceLoss` asks a model for them. The reference is the model without its
adapter. TRL is the oracle (tests/train/test_preference.py); its ORPO also counts the prompt's tokens in its first term.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nbtune.device import send
from nbtune.errors import SpecError, TrainError
from nbtune.train.loss import LossOutput, model_inputs

if TYPE_CHECKING:
    from nbtune.data.batching.sampler import Batch

__all__ = [
    "METHODS",
    "Answers",
    "PreferenceLoss",
    "dpo",
    "ipo",
    "kto",
    "mismatched",
    "orpo",
    "reward",
    "score_answers",
    "simpo",
]


@dataclass(frozen=True)
class Answers:
    """What a model says of answers: fp32 `[N]` each.

    Args:
        logprobs: log π(y | x), summed over the answer's tokens.
        tokens: how many these are.
        reference: the same of the reference model, None for methods without one.
    """

    logprobs: Tensor
    tokens: Tensor
    reference: Tensor | None = None

    @property
    def ratios(self) -> Tensor:
        """r(x, y)."""
        assert self.reference is not None
        return self.logprobs - self.reference

    @property
    def means(self) -> Tensor:
        """log π(y | x) a token."""
        return self.logprobs / self.tokens.clamp(min=1)

    def of(self, chosen: slice | Tensor) -> Answers:
        """Some of them."""
        reference = None if self.reference is None else self.reference[chosen]
        return Answers(self.logprobs[chosen], self.tokens[chosen], reference)


def dpo(better: Answers, worse: Answers, *, beta: float = 0.1) -> Tensor:
    """A loss a pair, `[P]`."""
    return -logsigmoid(beta * (better.ratios - worse.ratios))


def ipo(better: Answers, worse: Answers, *, beta: float = 0.1) -> Tensor:
    """A loss a pair, `[P]`."""
    gap = better.ratios / better.tokens.clamp(min=1) - worse.ratios / worse.tokens.clamp(min=1)
    return (gap - 1 / (2 * beta)) ** 2


def orpo(better: Answers, worse: Answers, *, beta: float = 0.1) -> Tensor:
    """A loss a pair, `[P]`; the first terms' mean is the mean over all tokens of better answers."""
    odds = [a.means - _log1mexp(a.means) for a in (better, worse)]
    imitation = -better.logprobs * (len(better.tokens) / better.tokens.sum().clamp(min=1))
    return imitation - beta * logsigmoid(odds[0] - odds[1])


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, without cancellation (Mächler 2012)."""
    return torch.where(x > -0.6931472, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def simpo(better: Answers, worse: Answers, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """A loss a pair, `[P]`."""
    return -logsigmoid(beta * (better.means - worse.means) - gamma)


def kto(
    answers: Answers, good: Tensor, z: Tensor, *, beta: float = 0.1, good_weight: float = 1.0, bad_weight: float = 1.0
) -> Tensor:
    """A loss an answer, `[N]`.

    Args:
        good: bool `[N]`.
        z: scalar without gradient, see the module.
        good_weight, bad_weight: λ of either kind.
    """
    gap = torch.where(good, answers.ratios - z, z - answers.ratios)
    return torch.where(good, good_weight, bad_weight) * (1 - torch.sigmoid(beta * gap))


def reward(better: Tensor, worse: Tensor, *, margin: Tensor | float = 0.0, center: float = 0.0) -> Tensor:
    """A loss a pair, `[P]`, of the scores `[P]` that a reward model gives."""
    return -logsigmoid(better - worse - margin) + center * (better + worse) ** 2


# ---------------------------------------------------------------- asking a model


def score_answers(model: torch.nn.Module, batch: Batch, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Summed log-probability and number of the trained tokens of every example, fp32 `[N]` each.

    Args:
        model: a causal language model, accelerated or not, with an adapter or not.
        batch: padded rows, or packs.
    """
    from nbtune_kernels import linear_logprobs_of

    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.accelerate.lm_head import find_head
    from nbtune.models.accelerate.lora_linear import LeftAlone

    owners, count = _owners(batch), len(batch.examples)
    lm: Any = causal_lm(model)
    inner, labels = decoder(lm), send(batch.trained_labels, device)
    rows, owner = send(batch.trained_rows, device), send(owners, device)
    inputs = model_inputs(batch, device, fused=True)
    for name in ("loss_rows", "loss_labels", "loss_weights", "loss_only"):
        inputs.pop(name, None)
    try:
        head = find_head(lm) if inner is not None else None
    except LeftAlone:
        head = None
    if head is None or inner is None:
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[rows].float()
        found = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels != -100)
    else:
        hidden = inner(**inputs, use_cache=False, return_dict=True).last_hidden_state
        found, *_ = linear_logprobs_of(
            hidden, head.module.weight, labels, bias=head.module.bias, rows=rows, softcap=head.softcap,
            logit_scale=head.logit_scale,
        )  # fmt: skip
    zeros = torch.zeros(count, dtype=torch.float32, device=device)
    return zeros.index_add(0, owner, found), zeros.index_add(0, owner, (labels != -100).float())


def _owners(batch: Batch) -> Tensor:
    """Which example each of `batch.trained_rows` belongs to, int64 `[R]`."""
    rows = batch.trained_rows.numpy()
    if batch.cu_seqlens is None:
        return torch.from_numpy(rows // batch.input_ids.shape[1])
    documents = np.searchsorted(batch.cu_seqlens.numpy(), rows, side="right") - 1
    trained = batch.trained_labels.numpy() != -100
    known, place = np.unique(documents[trained], return_inverse=True)  # padding is a document too, without labels
    if len(known) != len(batch.examples):
        raise TrainError("an answer has no tokens to learn from", fix="leave such rows out, or set `packing: false`")
    owners = np.zeros_like(rows)
    owners[trained] = place
    return torch.from_numpy(owners)


def mismatched(batch: Batch) -> Batch:
    """Every prompt with the answer of the row before it: what KTO's z is estimated on.

    Args:
        batch: at least two examples; packs are taken apart.
    """
    from nbtune.data.batching.sampler import collate
    from nbtune.data.prepare.dataset import Builder

    batch = batch.unpacked() if batch.cu_seqlens is not None else batch
    ids, labels = batch.input_ids.numpy(), batch.labels.numpy()
    lengths = [ids.shape[1]] * len(ids) if batch.attention_mask is None else batch.attention_mask.sum(1).tolist()
    starts = [int(np.argmax(row != -100)) for row in labels]
    builder = Builder(["mismatched"])
    for i, start in enumerate(starts):
        answer = slice(starts[i - 1], lengths[i - 1])
        trained = np.concatenate([np.zeros(start, bool), labels[i - 1, answer] != -100])
        builder.add(np.concatenate([ids[i, :start], ids[i - 1, answer]]).astype(np.int32), trained, 0, i)
    return collate(builder.build(), list(range(len(ids))))


METHODS: dict[str, Callable[..., Tensor]] = {"dpo": dpo, "ipo": ipo, "orpo": orpo, "simpo": simpo, "kto": kto}
_WITHOUT_REFERENCE = ("orpo", "simpo")


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss as the loop calls it, of batches whose `values` are judgements.

    Args:
        method: one of `METHODS`.
        options: of its function, such as ``beta``.

    Raises:
        SpecError: there is no such method.
    """

    method: str
    options: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SpecError(f"there is no method {self.method!r}", fix=f"Use one of {', '.join(sorted(METHODS))}.")

    def count(self, batch: Batch) -> float:
        """What the losses of an optimizer step are divided by the sum of: pairs, or answers, as often as they count."""
        every = 1 if self.method == "kto" else 2
        if batch.example_weights is not None:
            return float(batch.example_weights[::every].double().sum())
        return len(batch.examples) // every

    def __call__(self, model: torch.nn.Module, batch: Batch, *, denominator: float, device: torch.device) -> LossOutput:
        """Σ loss / denominator.

        Args:
            model: with an adapter, unless the method needs no reference.
            batch: pairs side by side (better, worse, better, …); for ``kto`` answers, `values` 1 for good ones.
            denominator: the sum of `count` over the optimizer step.
            device: where the model is.
        """
        answers = self._ask(model, batch, device)
        if self.method == "kto":
            good = send(batch.values, device) > 0.5
            each = kto(answers, good, self._z(model, batch, device), **self.options)
        else:
            each = METHODS[self.method](answers.of(slice(0, None, 2)), answers.of(slice(1, None, 2)), **self.options)
        if batch.example_weights is not None:
            each = each * send(batch.example_weights[:: 1 if self.method == "kto" else 2], device)
        return LossOutput(loss=each.sum() / denominator)

    def _ask(self, model: torch.nn.Module, batch: Batch, device: torch.device) -> Answers:
        answers = Answers(*score_answers(model, batch, device=device))
        if self.method in _WITHOUT_REFERENCE:
            return answers
        with torch.no_grad(), _without_adapter(model):
            reference, _ = score_answers(model, batch, device=device)
        return replace(answers, reference=reference)

    @torch.no_grad()
    def _z(self, model: torch.nn.Module, batch: Batch, device: torch.device) -> Tensor:
        if len(batch.examples) < 2:  # the last one of an epoch: there is no other answer
            return torch.zeros((), device=device)
        return self._ask(model, mismatched(batch), device).ratios.mean().clamp(min=0)


def _without_adapter(model: Any) -> AbstractContextManager[Any]:
    if not hasattr(model, "disable_adapter"):
        raise TrainError(
            "this method compares with a reference model, which is the model without its adapter",
            fix="write `adapter: lora`, or a method without a reference (orpo, simpo)",
        )
    return model.disable_adapter()  # type: ignore[no-any-return]
