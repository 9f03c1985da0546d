"""What a set knows of its labels is kept, and a row of two equal keys is no row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

import nbtune
from nbtune.data.prepare.labels import with_labels
from nbtune.data.sources.variables import rows_of
from nbtune.errors import DataError

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["bad", "good"]),
        "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "PER"])),
        "n": datasets.Value("int64"),
        "pair": datasets.Sequence(datasets.ClassLabel(names=["O", "PER"]), length=2),
    }
)
ROWS: list[dict[str, Any]] = [
    {"text": "a", "label": 1, "tags": [0, 1], "n": 1, "pair": [1, 0]},
    {"text": "b", "label": -1, "tags": [], "n": 0, "pair": [0, -1]},
    {"text": "c", "label": None, "tags": None, "n": 1, "pair": [1, 1]},
]
NAMED = [("good", ["O", "PER"]), (None, []), (None, None)]


@pytest.mark.parametrize("order", [None, [2, 0, 1], []])
def test_labels_have_the_names_that_their_set_gives_them(order: list[int] | None) -> None:
    dataset = datasets.Dataset.from_list(ROWS, features=FEATURES)
    dataset = dataset if order is None else dataset.select(order)
    found = list(rows_of(dataset, "rows"))
    chosen = range(3) if order is None else order
    assert [(row["label"], row["tags"]) for row in found] == [NAMED[k] for k in chosen]
    pairs = [["PER", "O"], ["O", None], ["PER", "PER"]]
    assert [row["pair"] for row in found] == [pairs[k] for k in chosen]
    assert [row["n"] for row in found] == [ROWS[k]["n"] for k in chosen], "a number is none"


def test_a_classifier_calls_its_labels_by_those_names() -> None:
    many = [
        {"text": f"{word} {i}", "label": i % 2, "tags": [], "n": 0, "pair": [0, -1]}
        for i, word in enumerate(["tar", "oar"] * 4)
    ]
    dataset = datasets.Dataset.from_list(many, features=FEATURES)
    sources = nbtune.data.resolve(nbtune.RunSpec(data="rows").data, {"rows": dataset})
    spec = nbtune.RunSpec(data="rows", method="classification")
    assert with_labels(spec, sources).labels == ("bad", "good")


@pytest.mark.parametrize("body", ['{"prompt": "a", "prompt": "b", "completion": "c"}', '{"m": {"k": 1, "k": 1}}'])
def test_a_key_that_stands_twice_is_an_error_of_its_row(tmp_path: Path, body: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "x", "completion": "y"}\n' + body + "\n", encoding="utf-8")
    (source,) = nbtune.data.resolve(nbtune.RunSpec(data=str(file)).data, {})
    with pytest.raises(DataError, match="stands twice in one object") as refused:
        source.rows[1]
    assert "rows.jsonl, line 2" in str(refused.value)
