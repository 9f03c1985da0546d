"""Distillation: learn what a larger model says of each token, not only which token stands there (Hinton et al. 2015,
arXiv 1503.02531).

    loss = -α log p(token) + (1 - α) T² KL(q_T ‖ p_T)      of each trained token

p the model's probabilities, q the teacher's (`teacher` in the spec), both of logits divided by the temperature T; T²
keeps the gradients' size. Rows are those of sft: the teacher reads the same tokens, so its vocabulary must be the
model's.

With `top_k` the teacher is asked once, before the first step, and its k likeliest tokens of each place are written
down: q are then their shares among themselves, and training is without the teacher.
"""

from __future__ import annotations

from nbtune.methods._method import Method

METHOD = Method(
    name="distill",
    title="Distillation",
    sentence="say what a teacher model says of the answers",
    rows="sft",
    loss="cross_entropy",
    options={"temperature": 1.0, "alpha": 0.5, "top_k": 0},
    teacher=True,
    perplexity=True,
)
