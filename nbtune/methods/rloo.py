"""RLOO, REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740), run by TRL's trainer.

Each prompt gets a group of answers, each answer a reward r from the spec's `rewards`, less `beta` times its distance
(KL) from the model without its adapter. An answer's advantage is its reward less the mean of the others of its group:

    A = r - mean of the other answers' r
"""

from __future__ import annotations

from nbtune.methods._method import Method

METHOD = Method(
    name="rloo",
    title="RLOO",
    sentence="answer prompts, and repeat what the rewards like better than the other answers",
    columns="prompt",
    rows="prompts",
    loss="policy_gradient",
    options={"beta": 0.05},
    learning_rate_share=1 / 4,
    trainer="RLOOTrainer",
    online=True,
)
