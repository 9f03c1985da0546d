"""Text classification: which of some labels a text has.

    loss = -log p(label | text)      (with `label_smoothing` ε: a share ε of it for all labels alike)

p the softmax of the head's outputs at the text's last token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods._measures import recognised
from nbtune.methods._method import Answers, Method

if TYPE_CHECKING:
    from torch import Tensor


def loss(answers: Answers, *, label_smoothing: float) -> Tensor:
    """Return a loss a text, `[N]`."""
    from torch.nn.functional import cross_entropy

    assert answers.scores is not None
    return cross_entropy(answers.scores, answers.classes, reduction="none", label_smoothing=label_smoothing)


METHOD = Method(
    name="classification",
    title="Text classification",
    sentence="name a text's label",
    columns="text, label",
    rows="labelled",
    loss=loss,
    options={"label_smoothing": 0.0},
    head="text",
    metrics=recognised,
)
