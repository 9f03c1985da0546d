"""A reward model: how good an answer is, as one number, learnt from pairs (Bradley and Terry 1952; Ouyang et al. 2022,
arXiv 2203.02155, eq. 1).

    loss = -log σ(r_w - r_l - m) + c (r_w + r_l)²

r the head's output at an answer's last token, w the better and l the worse answer, m how much better the row says it
is (`margin`; Touvron et al. 2023, arXiv 2307.09288, eq. 2), c `center_rewards`, which keeps rewards around 0
(Eisenstein et al. 2023, arXiv 2312.09244).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import compared
from nbtune.methods._method import Answers, Method

if TYPE_CHECKING:
    from torch import Tensor


def loss(better: Answers, worse: Answers, *, center_rewards: float) -> Tensor:
    """Return a loss a pair, `[P]`."""
    from torch.nn.functional import logsigmoid

    assert better.values is not None
    margin = better.values - 1  # what was judged of the better one is 1 and its margin
    ranked = -logsigmoid(better.reward - worse.reward - margin)
    return ranked + center_rewards * (better.reward + worse.reward) ** 2 if center_rewards else ranked


def metrics(better: Answers, worse: Answers, **_: float | str) -> dict[str, Tensor]:
    """Return the figures of the rewards."""
    return compared(better.reward, worse.reward)


METHOD = Method(
    name="reward",
    title="Reward model",
    sentence="score answers, the better of two higher",
    columns="prompt, chosen, rejected",
    rows="pairs",
    loss=loss,
    options={"center_rewards": 0.0},
    head="text",
    labels=("reward",),
    metrics=metrics,
    trainer="RewardTrainer",
)
