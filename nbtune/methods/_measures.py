"""What is worth watching of a method: the rewards that its loss implies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def compared(better: Tensor, worse: Tensor) -> dict[str, Tensor]:
    """Return figures `[P]` of the rewards of pairs: whether each is in the right order, and by how much."""
    return {
        "accuracy": (better > worse).float(),
        "margin": better - worse,
        "reward_chosen": better,
        "reward_rejected": worse,
    }


def judged(rewards: Tensor, good: Tensor) -> dict[str, Tensor]:
    """Return the rewards `[N]` of good answers, and of bad ones."""
    kinds = {"reward_good": good, "reward_bad": ~good}
    return {name: rewards.masked_fill(~kind, float("nan")) for name, kind in kinds.items()}
