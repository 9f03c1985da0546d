"""Token classification: which of some labels each word of a text has (names of people and places, parts of speech).

    loss = -log p(label | the text up to the end of the word)      of each word; the mean is over all words

p the softmax of the head's outputs at the line break behind the word: a model that reads from left to right has seen
all of the word there, and nothing behind it. With `label_smoothing` ε a share ε of it is for all labels alike.
"""

from __future__ import annotations

from nbtune.methods._label_loss import label_loss
from nbtune.methods._measures import recognised
from nbtune.methods._method import Method

METHOD = Method(
    name="token_classification",
    title="Token classification",
    sentence="name the label of each word of a text",
    columns="tokens, tags",
    rows="tagged",
    loss=label_loss,
    options={"label_smoothing": 0.0},
    head="token",
    metrics=recognised,
)
