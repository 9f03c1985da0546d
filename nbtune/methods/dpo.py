"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290).

loss = -log σ(β (r_w - r_l)),      r = log π(y | x) - log π_ref(y | x), w the better and l the worse answer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import compared
from nbtune.methods._method import Answers, Method

if TYPE_CHECKING:
    from torch import Tensor


def loss(better: Answers, worse: Answers, *, beta: float) -> Tensor:
    """Return a loss a pair, `[P]`."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (better.ratios - worse.ratios))


def metrics(better: Answers, worse: Answers, *, beta: float) -> dict[str, Tensor]:
    """Return the figures of the rewards β r."""
    return compared(beta * better.ratios, beta * worse.ratios)


METHOD = Method(
    name="dpo",
    title="Direct preference optimization",
    sentence="prefer the better of two answers",
    columns="prompt, chosen, rejected",
    rows="pairs",
    loss=loss,
    options={"beta": 0.1},
    learning_rate_share=1 / 10,
    reference=True,
    metrics=metrics,
)
