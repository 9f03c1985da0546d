"""The loss of methods whose head names labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from nbtune.methods._method import Answers


def label_loss(answers: Answers, *, label_smoothing: float = 0.0) -> Tensor:
    """Return -log p of each label that is asked for, `[N]`; a share `label_smoothing` of it for all labels alike."""
    from torch.nn.functional import cross_entropy

    assert answers.scores is not None
    return cross_entropy(answers.scores, answers.classes, reduction="none", label_smoothing=label_smoothing)
