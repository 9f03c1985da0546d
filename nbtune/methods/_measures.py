"""What is worth watching of a method: the rewards that its loss implies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def compared(better: Tensor, worse: Tensor) -> dict[str, Tensor]:
    """Return scalars of the rewards `[P]` of pairs: which share is in the right order, and by how much on average."""
    return {
        "accuracy": (better > worse).float().mean(),
        "margin": (better - worse).mean(),
        "reward_better": better.mean(),
        "reward_worse": worse.mean(),
    }


def judged(rewards: Tensor, good: Tensor) -> dict[str, Tensor]:
    """Return the mean reward of good and of bad answers `[N]`; of a kind that is not among them 0."""
    kinds = {"reward_good": good, "reward_bad": ~good}
    return {name: (rewards * kind).sum() / kind.sum().clamp(min=1) for name, kind in kinds.items()}
