"""GRPO, group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300), run by TRL's trainer.

Each prompt gets a group of answers, each answer a reward r from the spec's `rewards`. An answer's advantage is how much
better it is than its group:

    A = (r - mean of the group) / (standard deviation of the group)

and each of its tokens becomes likelier as A is higher; TRL's default loss (``dapo``) divides by all tokens of the step.
`beta` weighs the distance (KL) from the model without its adapter; unset, there is none.
"""

from __future__ import annotations

from nbtune.methods._method import Method

METHOD = Method(
    name="grpo",
    title="GRPO",
    sentence="answer prompts, and repeat what the rewards like best in a group of answers",
    columns="prompt",
    rows="prompts",
    loss="policy_gradient",
    options={"beta": 0.0},
    learning_rate_share=1 / 4,
    trainer="GRPOTrainer",
    online=True,
)
