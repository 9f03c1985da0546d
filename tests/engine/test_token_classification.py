"""Words and their labels, from rows through `nbtune.finetune` to transformers' own class."""

from __future__ import annotations

import random
from typing import Any

import datasets
import pytest
import torch
from torch.nn.functional import cross_entropy

import nbtune
from nbtune import events
from nbtune.errors import DataError
from tests.engine.test_heads import STILL, asked

LABELS = ["O", "PER", "LOC"]
ROWS = [
    {"tokens": ["Ada", "sails", "to", "Hull"], "ner_tags": [1, 0, 0, 2]},
    {"tokens": ["So", "it", "is", "."], "ner_tags": [0, 0, 0, 0]},
    {"tokens": ["Wellington", "met", "Bo"], "ner_tags": [2, 0, 1]},
]
FEATURES = datasets.Features(
    {
        "tokens": datasets.Sequence(datasets.Value("string")),
        "ner_tags": datasets.Sequence(datasets.ClassLabel(names=LABELS)),
    }
)


def lines(words: list[str]) -> str:
    return "".join(f"{word}\n" for word in words)


def test_the_first_loss_is_transformers_and_labels_have_their_names(start: Any) -> None:
    rows = datasets.Dataset.from_list(ROWS, features=FEATURES)
    sizes: dict[str, Any] = {"batch_size": 3, "micro_batch_size": 1}
    run = start(rows=rows, method="token_classification", labels=LABELS, **sizes, **STILL).wait()
    model, tokenizer = asked(run, "TokenClassification")
    losses, right = [], []
    for row in ROWS:
        encoded = tokenizer(lines(row["tokens"]), return_offsets_mapping=True)
        text = lines(row["tokens"])
        at = [k for k, (_, end) in enumerate(encoded["offset_mapping"]) if text[end - 1] == "\n"]
        logits = model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0][at]
        assert len(logits) == len(row["tokens"])
        losses.append(cross_entropy(logits, torch.tensor(row["ner_tags"]), reduction="none"))
        right.append(logits.argmax(-1) == torch.tensor(row["ner_tags"]))
        told = run.score([row["tokens"]])[0]
        for word, expected in zip(told, logits.softmax(-1).tolist(), strict=True):
            assert word == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)
    assert run.history["loss"].iloc[0] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    figures = run.latest(events.Step).metrics
    assert figures["accuracy"] == pytest.approx(float(torch.cat(right).float().mean()))
    assert set(figures) == {"accuracy", "f1"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_learns_which_words_are_names(start: Any, seed: int) -> None:
    chance = random.Random(seed)
    kinds = {
        "PER": ["Ada", "Bo", "Cyrus", "Dora"],
        "LOC": ["Hull", "Kiel", "Oslo"],
        "O": ["sails", "to", "and", "the", "."],
    }

    def row() -> dict[str, Any]:
        tags = [chance.choice(LABELS) for _ in range(chance.randint(3, 8))]
        return {"tokens": [chance.choice(kinds[tag]) for tag in tags], "tags": tags}

    rows = [row() for _ in range(80)]
    fields: dict[str, Any] = {"steps": 60, "batch_size": 8, "learning_rate": 5e-3, "eval": {"split": 0.2}, "seed": seed}
    run = start(rows=rows, method="token_classification", **fields).wait()
    assert run.latest(events.Eval).metrics["f1"] >= 0.95


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "one label a word (2)"),
        ({"tokens": ["a", " "], "tags": ["O", "P"]}, "is empty"),
        ({"tokens": ["a\nb"], "tags": ["O"]}, "is several lines"),
        ({"tokens": "a b", "tags": ["O", "P"]}, "must be a list of words"),
        ({"tokens": ["a"], "tags": [None]}, "`tags` is missing"),
    ],
)
def test_what_is_no_such_row_is_said(row: dict[str, Any], said: str) -> None:
    good = {"tokens": ["a", "b"], "tags": ["O", "P"]}
    with pytest.raises(DataError) as refused:
        nbtune.validate(data="rows", rows={"rows": [good, row]}, method="token_classification")
    assert said in str(refused.value)
