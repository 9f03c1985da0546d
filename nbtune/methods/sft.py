"""Supervised fine-tuning: imitate the answers. Texts without questions are learnt whole, as in pretraining.

    loss = -log p(token | those before it)      of each trained token

The head of the model computes it (`nbtune_kernels`, where it is ours, never has all logits in memory).
"""

from __future__ import annotations

from nbtune.methods._method import Method

METHOD = Method(
    name="sft",
    title="Supervised fine-tuning",
    sentence="imitate the answers",
    rows="sft",
    loss="cross_entropy",
    options={"label_smoothing": 0.0, "z_loss": 0.0},
)
