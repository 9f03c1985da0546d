"""What several methods have in common: figures of the rewards that their losses imply, and the imitation in some."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from nbtune.methods._method import Answers


def compared(better: Tensor, worse: Tensor) -> dict[str, Tensor]:
    """Return figures `[P]` of the rewards of pairs: whether each is in the right order, and by how much."""
    return {
        "accuracy": (better > worse).float(),
        "margin": better - worse,
        "reward_chosen": better,
        "reward_rejected": worse,
    }


def judged(answers: Answers, *, beta: float, **_: float | str) -> dict[str, Tensor]:
    """Return the rewards β r `[N]` of good answers, and of bad ones."""
    rewards, kinds = beta * answers.ratios, {"reward_good": answers.good, "reward_bad": ~answers.good}
    return {name: rewards.masked_fill(~kind, float("nan")) for name, kind in kinds.items()}


def imitated(answers: Answers) -> Tensor:
    """Return `[P]` of which the step's mean is -log π a token, over all tokens of the step's answers."""
    of_step = answers.of_step
    return -answers.logprobs * (of_step.count / of_step.all_tokens.clamp(min=1e-6))


def recognised(answers: Answers, **_: float | str) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    """Return of answers `[N]` whether the likeliest label is theirs, and each label's F1 as a ratio of sums.

    F1 of a label is 2 · right / (said + there), so that it can be added up over micro-batches and steps.
    """
    assert answers.scores is not None
    said, classes = answers.scores.argmax(-1), answers.classes
    figures: dict[str, Tensor | tuple[Tensor, Tensor]] = {"accuracy": (said == classes).float()}
    for label in range(answers.scores.shape[1]):
        here, there = said == label, classes == label
        figures[f"f1:{label}"] = 2.0 * (here & there), here.float() + there.float()
    return figures
