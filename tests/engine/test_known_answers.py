"""Methods reach an answer known beforehand, with three seeds: preferences of held-out rows, a grammar's entropy.

Those of scores and labels: test_heads.py and test_token_classification.py; distillation: test_distillation.py; rewards:
test_reversal.py.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from nbtune import events
from tests.engine.test_distillation import walks
from tests.engine.test_heads import said

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
HELD = 0.3
STEPS = {"orpo": 150, "cpo": 150}  # which also imitate; 60 of the others


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo", "orpo", "cpo"])
def test_the_better_of_held_out_pairs_is_preferred(start: Any, method: str, seed: int) -> None:
    """In 95 of 100: the words of praise are shared, the sentences are not."""
    chance = random.Random(seed)
    rows = [
        {"prompt": "How was it?", "chosen": said(chance, True), "rejected": said(chance, False)} for _ in range(200)
    ]
    how: dict[str, Any] = {"batch_size": 16, "seed": seed, "learning_rate": 1e-3, "eval": {"split": HELD}}
    run = start(rows=rows, method=method, steps=STEPS.get(method, 60), **how).wait()
    assert run.latest(events.Eval).metrics["accuracy"] >= 0.95


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("method", ["kto", "bco"])
def test_held_out_answers_that_are_good_are_above_those_that_are_bad(start: Any, method: str, seed: int) -> None:
    """Of all such pairs 95 in 100, by how much likelier each has become than it was."""
    chance = random.Random(seed)
    rows = [{"prompt": "How was it?", "completion": said(chance, k % 2 == 1), "label": k % 2 == 1} for k in range(300)]
    how: dict[str, Any] = {"steps": 60, "batch_size": 16, "seed": seed, "learning_rate": 1e-3, "eval": {"split": HELD}}
    run = start(rows=rows, method=method, **how).wait()
    known = run.losses().wait().frame
    held = known[known["part"] == "eval"]
    learnt: dict[bool, list[float]] = {True: [], False: []}
    for row, gained in zip(held["row"], held["learnt"] * held["trained"], strict=True):
        learnt[rows[row]["label"]].append(gained)
    above = [good > bad for good in learnt[True] for bad in learnt[False]]
    assert min(map(len, learnt.values())) > 20
    assert sum(above) / len(above) >= 0.95


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_perplexity_of_held_out_texts_is_that_of_their_grammar(start: Any, seed: int) -> None:
    """Within 2 %: of ten first words one, and of two next ones each time one, all alike likely."""
    how: dict[str, Any] = {"batch_size": 16, "steps": 200, "learning_rate": 3e-3, "seed": seed, "eval": {"split": 0.1}}
    run = start(rows=walks(seed, 600), method="pretrain", **how).wait()
    tokens = run.history["trained_tokens"].sum() / (200 * 16)  # of a text, on average
    entropy = (math.log(10) + 19 * math.log(2)) / tokens
    perplexity = run.latest(events.Eval).metrics["perplexity"]
    assert math.exp(entropy) * 0.98 <= perplexity <= math.exp(entropy) * 1.02
