"""A process reward model: which steps of a solution are right (Uesato et al. 2022, arXiv 2211.14275; Lightman et al.
2023, arXiv 2305.20050).

    loss = -log p(right or wrong | the problem and all steps so far)      of each step

p the softmax of the head's two outputs at the line break that ends a step. The mean is over all steps of the batch.
"""

from __future__ import annotations

from nbtune.methods._label_loss import label_loss
from nbtune.methods._measures import recognised
from nbtune.methods._method import Method

METHOD = Method(
    name="prm",
    title="Process reward model",
    sentence="judge each step of a solution",
    columns="prompt, completions, labels",
    rows="stepwise",
    loss=label_loss,
    head="token",
    labels=("wrong", "right"),
    metrics=recognised,
    trainer="PRMTrainer",
)
