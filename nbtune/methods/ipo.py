"""Identity preference optimization (Azar et al. 2023, arXiv 2310.12036): a gap to reach, not to widen without end.

loss = (r_w / |w| - r_l / |l| - 1 / 2β)²,      r = log π(y | x) - log π_ref(y | x), |y| the tokens of an answer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import compared
from nbtune.methods._method import Answers, Method

if TYPE_CHECKING:
    from torch import Tensor


def loss(better: Answers, worse: Answers, *, beta: float) -> Tensor:
    """Return a loss a pair, `[P]`."""
    gap = better.ratios / better.tokens.clamp(min=1) - worse.ratios / worse.tokens.clamp(min=1)
    return (gap - 1 / (2 * beta)) ** 2


def metrics(better: Answers, worse: Answers, *, beta: float) -> dict[str, Tensor]:
    """Return the figures of the rewards β r / |y|."""
    return compared(*(beta * a.ratios / a.tokens.clamp(min=1) for a in (better, worse)))


METHOD = Method(
    name="ipo",
    title="Identity preference optimization",
    sentence="prefer the better of two answers",
    columns="prompt, chosen, rejected",
    rows="pairs",
    loss=loss,
    options={"beta": 0.1},
    learning_rate_share=1 / 10,
    reference=True,
    metrics=metrics,
)
