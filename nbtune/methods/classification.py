"""Text classification: which of some labels a text has.

    loss = -log p(label | text)      (with `label_smoothing` ε: a share ε of it for all labels alike)

p the softmax of the head's outputs at the text's last token.
"""

from __future__ import annotations

from nbtune.methods._label_loss import label_loss
from nbtune.methods._measures import recognised
from nbtune.methods._method import Method

METHOD = Method(
    name="classification",
    title="Text classification",
    sentence="name a text's label",
    columns="text, label",
    rows="labelled",
    loss=label_loss,
    options={"label_smoothing": 0.0},
    head="text",
    metrics=recognised,
)
