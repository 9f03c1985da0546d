"""Odds ratio preference optimization (Hong et al. 2024, arXiv 2403.07691): imitates the better answer as well.

    loss = -log π(w) / |w| - β log σ(odds(w) - odds(l)),      odds(y) = a - log(1 - e^a), a = log π(y) / |y|

The mean of the first terms is the mean over all tokens of the step's better answers, so that a row's loss depends on
how long the others are. TRL's first term also counts the prompt's tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import compared, imitated
from nbtune.methods._method import Answers, Method

if TYPE_CHECKING:
    from torch import Tensor


def loss(better: Answers, worse: Answers, *, beta: float) -> Tensor:
    """Return a loss a pair, `[P]`."""
    from torch.nn.functional import logsigmoid

    odds = [a.means - _log1mexp(a.means) for a in (better, worse)]
    return imitated(better) - beta * logsigmoid(odds[0] - odds[1])


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - e^x) for x < 0, without cancellation (Mächler 2012)."""
    import torch

    return torch.where(x > -0.6931472, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def metrics(better: Answers, worse: Answers, *, beta: float) -> dict[str, Tensor]:
    """Return the figures of the rewards β log π(y | x) / |y|."""
    return compared(beta * better.means, beta * worse.means)


METHOD = Method(
    name="orpo",
    title="Odds ratio preference optimization",
    sentence="prefer the better of two answers",
    columns="prompt, chosen, rejected",
    rows="pairs",
    loss=loss,
    options={"beta": 0.1},
    learning_rate_share=1 / 4,  # it also imitates; the others compare, and overshoot long before
    of_step="tokens",
    metrics=metrics,
    trainer="ORPOTrainer",
)
