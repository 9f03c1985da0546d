"""Simple preference optimization (Meng et al. 2024, arXiv 2405.14734): without a reference, by the mean a token.

loss = -log σ(β (log π(w) / |w| - log π(l) / |l|) - γ)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import compared
from nbtune.methods._method import Answers, Method

if TYPE_CHECKING:
    from torch import Tensor


def loss(better: Answers, worse: Answers, *, beta: float, gamma: float) -> Tensor:
    """Return a loss a pair, `[P]`; `gamma` is the margin that is wanted."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (better.means - worse.means) - gamma)


def metrics(better: Answers, worse: Answers, *, beta: float, gamma: float) -> dict[str, Tensor]:
    """Return the figures of the rewards β log π(y | x) / |y|."""
    return compared(beta * better.means, beta * worse.means)


METHOD = Method(
    name="simpo",
    title="Simple preference optimization",
    sentence="prefer the better of two answers",
    columns="prompt, chosen, rejected",
    rows="pairs",
    loss=loss,
    options={"beta": 2.0, "gamma": 1.0},
    learning_rate_share=1 / 10,
    metrics=metrics,
)
