"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306): answers are good or bad, not compared.

    loss = λ (1 - σ(±β (r - z))),      r = log π(y | x) - log π_ref(y | x)

with + for good answers and - for bad ones, λ a weight of each kind, and z = max(0, mean r of answers under other rows'
prompts, over the whole step), how far the model is from its reference; it has no gradient.
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

    good, z = answers.good, _distance(answers)
    gap = torch.where(good, answers.ratios - z, z - answers.ratios)
    return torch.where(good, desirable_weight, undesirable_weight) * (1 - torch.sigmoid(beta * gap))


def _distance(answers: Answers) -> Tensor:
    """Return z, a scalar; of a single answer 0."""
    if answers.mismatched is None:
        return answers.logprobs.new_zeros(())
    return answers.mismatched.ratios.mean().clamp(min=0)


METHOD = Method(
    name="kto",
    title="Kahneman-Tversky optimization",
    sentence="from answers that are good or bad",
    columns="prompt, completion, label",
    rows="feedback",
    loss=loss,
    options={"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    learning_rate_share=1 / 10,
    reference=True,
    mismatched=True,
    least_batch=2,  # whose answers are compared
    metrics=judged,
    trainer="KTOTrainer",
)
