"""Losses of a better and a worse answer, by the names that they have elsewhere (`loss: {type: …}`).

r = log π(y | x) - log π_ref(y | x), w the better and l the worse answer, d = r_w - r_l, ε `label_smoothing`, the share
of pairs that are the wrong way round. Of r_w and r_l `[P]`, β and ε each returns a loss a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    PairLoss = Callable[[Tensor, Tensor, float, float], Tensor]

_LEAST_EPSILON = 1e-3  # of exo_pair, where log ε is a part of the loss


def sigmoid(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return -(1 - ε) log σ(β d) - ε log σ(-β d): DPO, with ε > 0 its conservative form (Mitchell 2023)."""
    from torch.nn.functional import logsigmoid

    gap = beta * (better - worse)
    return -logsigmoid(gap) if epsilon == 0 else -(1 - epsilon) * logsigmoid(gap) - epsilon * logsigmoid(-gap)


def robust(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return (-(1 - ε) log σ(β d) + ε log σ(-β d)) / (1 - 2ε), unbiased under flipped labels (Chowdhury et al. 2024,
    arXiv 2403.00409)."""
    from torch.nn.functional import logsigmoid

    gap = beta * (better - worse)
    return (epsilon * logsigmoid(-gap) - (1 - epsilon) * logsigmoid(gap)) / (1 - 2 * epsilon)


def hinge(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return max(0, 1 - β d) (Zhao et al. 2023, arXiv 2305.10425; Liu et al. 2023, arXiv 2309.06657)."""
    return (1 - beta * (better - worse)).clamp(min=0)


def exo_pair(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return KL(p ‖ (1 - ε, ε)) with p = (σ(β d), σ(-β d)) (Ji et al. 2024, arXiv 2402.00856, eq. 16)."""
    import math

    from torch.nn.functional import logsigmoid

    gap, epsilon = beta * (better - worse), max(epsilon, _LEAST_EPSILON)
    right = gap.sigmoid() * (logsigmoid(gap) - math.log1p(-epsilon))
    return right + (-gap).sigmoid() * (logsigmoid(-gap) - math.log(epsilon))


def nca_pair(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return -log σ(β r_w) - ½ log σ(-β r_w) - ½ log σ(-β r_l) (Chen et al. 2024, arXiv 2402.05369)."""
    from torch.nn.functional import logsigmoid

    better, worse = beta * better, beta * worse
    return -logsigmoid(better) - 0.5 * logsigmoid(-better) - 0.5 * logsigmoid(-worse)


def sppo_hard(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return (r_w - 1 / 2β)² + (r_l + 1 / 2β)² (Wu et al. 2024, arXiv 2405.00675, with probabilities 1 and 0)."""
    return (better - 0.5 / beta) ** 2 + (worse + 0.5 / beta) ** 2


def apo_zero(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return 1 - σ(β r_w) + σ(β r_l): better answers are above what the model says by itself (D'Oosterlinck et al.
    2024, arXiv 2408.06266, eq. 7)."""
    return 1 - (beta * better).sigmoid() + (beta * worse).sigmoid()


def apo_down(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return σ(β r_w) + 1 - σ(β d): better answers are below what the model says by itself (the same, eq. 8)."""
    return (beta * better).sigmoid() + 1 - (beta * (better - worse)).sigmoid()


def bco_pair(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return -log σ(β r_w) - log σ(-β r_l): each judged by itself (Jung et al. 2024, arXiv 2404.04656, without its
    shift; the method `bco` has that)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * better) - logsigmoid(-beta * worse)


def discopop(better: Tensor, worse: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return (1 - m) (-log σ(β d)) + m exp(-β d) with m = σ(β d / 0.05) (Lu et al. 2024, arXiv 2406.08414, eq. 5)."""
    from torch.nn.functional import logsigmoid

    gap = beta * (better - worse)
    share = (gap / 0.05).sigmoid()
    return -(1 - share) * logsigmoid(gap) + share * (-gap).exp()


PAIR_LOSSES: Mapping[str, PairLoss] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "hinge": hinge,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "bco_pair": bco_pair,
    "discopop": discopop,
}

WITH_EPSILON = frozenset({"sigmoid", "robust", "exo_pair"})
"""Those that take ε; to the others it would be nothing."""
