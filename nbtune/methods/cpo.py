"""Contrastive preference optimization (Xu et al. 2024, arXiv 2401.08417): DPO without a reference; it also imitates.

    loss = -log σ(β (log π(w) - log π(l))) - α log π(w) / |w|        (`loss: {type: hinge}`: max(0, 1 - β (…)) - …)

The mean of the second terms is the mean over all tokens of the step's better answers, as in the authors' code (the
paper has the sum over an answer), so that a row's loss depends on how long the others are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import compared, imitated
from nbtune.methods._method import Answers, Method
from nbtune.methods._pair_losses import PAIR_LOSSES

if TYPE_CHECKING:
    from torch import Tensor


def loss(
    better: Answers, worse: Answers, *, beta: float, loss_type: str, label_smoothing: float, cpo_alpha: float
) -> Tensor:
    """Return a loss a pair, `[P]`."""
    gap = PAIR_LOSSES[loss_type](better.logprobs, worse.logprobs, beta, label_smoothing)
    return gap + cpo_alpha * imitated(better) if cpo_alpha else gap


def metrics(better: Answers, worse: Answers, *, beta: float, **_: float | str) -> dict[str, Tensor]:
    """Return the figures of the rewards β log π(y | x)."""
    return compared(beta * better.logprobs, beta * worse.logprobs)


METHOD = Method(
    name="cpo",
    title="Contrastive preference optimization",
    sentence="prefer the better of two answers",
    columns="prompt, chosen, rejected",
    rows="pairs",
    loss=loss,
    options={"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0, "cpo_alpha": 1.0},
    loss_types={"sigmoid": {"label_smoothing", "cpo_alpha"}, "hinge": {"cpo_alpha"}},
    learning_rate_share=1 / 10,
    of_step="tokens",
    metrics=metrics,
    trainer="CPOTrainer",
)
