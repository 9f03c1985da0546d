"""Continued pretraining: learn texts whole, every token of them, as a model learnt before it was given a chat.

    loss = -log p(token | those before it)      of each token

Rows of `text` are learnt whole by sft as well; here rows of another form are refused instead of being taken for
questions with answers. Long texts are cut into windows of `sequence_len`, none of it is left out.
"""

from __future__ import annotations

from nbtune.methods._method import Method

METHOD = Method(
    name="pretrain",
    title="Continued pretraining",
    sentence="learn texts whole",
    columns="text",
    rows="texts",
    loss="cross_entropy",
    options={"label_smoothing": 0.0, "z_loss": 0.0},
    perplexity=True,
)
