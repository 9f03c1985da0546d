"""Binary classifier optimization (Jung et al. 2024, arXiv 2404.04656): answers are good or bad, not compared.

    loss = -λ log σ(±(β r - δ)),      r = log π(y | x) - log π_ref(y | x)

with + for good answers and - for bad ones, λ a weight of each kind, and δ = ½ (mean β r of good answers + mean β r of
bad ones) over the whole step, without a gradient. The paper's δ is a moving mean over steps; of one step it is this.
A step in which all are of one kind has that kind's mean for δ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import judged
from nbtune.methods._method import Answers, Method

if TYPE_CHECKING:
    from torch import Tensor


def loss(answers: Answers, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """Return a loss an answer, `[N]`."""
    import torch
    from torch.nn.functional import logsigmoid

    good, above = answers.good, beta * answers.ratios - _shift(answers.of_step, beta)
    return -torch.where(good, desirable_weight, undesirable_weight) * logsigmoid(torch.where(good, above, -above))


def _shift(step: Answers, beta: float) -> Tensor:
    """Return δ, a scalar; each answer counts as often as its row does."""
    import torch

    rewards, weights = beta * step.ratios, torch.ones_like(step.tokens) if step.weights is None else step.weights
    means, there = [], []
    for kind in (step.good, ~step.good):
        share = weights * kind
        means.append((rewards * share).sum() / share.sum().clamp(min=1e-9))
        there.append(share.sum() > 0)
    of_kinds, found = torch.stack(means), torch.stack(there)
    return (of_kinds * found).sum() / found.sum().clamp(min=1)


METHOD = Method(
    name="bco",
    title="Binary classifier optimization",
    sentence="from answers that are good or bad",
    columns="prompt, completion, label",
    rows="feedback",
    loss=loss,
    options={"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    learning_rate_share=1 / 10,
    reference=True,
    of_step="answers",
    least_batch=2,  # whose answers are compared
    metrics=judged,
    trainer="BCOTrainer",
)
