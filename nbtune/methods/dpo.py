"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290), and its family.

    loss = -log σ(β (r_w - r_l)),      r = log π(y | x) - log π_ref(y | x), w the better and l the worse answer

`loss: {type: …}` puts another function of r_w and r_l in its place (`_pair_losses.py` has each with its formula and
paper). With ``length_normalized`` r is divided by the answer's tokens (Lambert et al. 2024, arXiv 2411.15124, 6.1.2);
``rpo_alpha`` adds α · -log π(w) / |w|, so that the better answer does not become less likely as well (Pang et al. 2024,
arXiv 2404.19733, eq. 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import compared
from nbtune.methods._method import Answers, Method
from nbtune.methods._pair_losses import PAIR_LOSSES, WITH_EPSILON

if TYPE_CHECKING:
    from torch import Tensor

_ANY = frozenset({"length_normalized", "rpo_alpha"})


def loss(
    better: Answers,
    worse: Answers,
    *,
    beta: float,
    loss_type: str,
    label_smoothing: float,
    rpo_alpha: float,
    length_normalized: bool,
) -> Tensor:
    """Return a loss a pair, `[P]`."""
    ratios = _ratios(better, length_normalized), _ratios(worse, length_normalized)
    compared_ = PAIR_LOSSES[loss_type](*ratios, beta, label_smoothing)
    return compared_ - rpo_alpha * better.means if rpo_alpha else compared_


def _ratios(answers: Answers, a_token: bool) -> Tensor:
    return answers.ratios / answers.tokens.clamp(min=1) if a_token else answers.ratios


def metrics(
    better: Answers, worse: Answers, *, beta: float, length_normalized: bool, **_: float | str
) -> dict[str, Tensor]:
    """Return the figures of the rewards β r."""
    return compared(*(beta * _ratios(answers, length_normalized) for answers in (better, worse)))


METHOD = Method(
    name="dpo",
    title="Direct preference optimization",
    sentence="prefer the better of two answers",
    columns="prompt, chosen, rejected",
    rows="pairs",
    loss=loss,
    options={
        "beta": 0.1,
        "loss_type": "sigmoid",
        "label_smoothing": 0.0,
        "rpo_alpha": 0.0,
        "length_normalized": False,
    },
    loss_types={name: _ANY | ({"label_smoothing"} if name in WITH_EPSILON else set()) for name in PAIR_LOSSES},
    learning_rate_share=1 / 10,
    reference=True,
    metrics=metrics,
    trainer="DPOTrainer",
)
