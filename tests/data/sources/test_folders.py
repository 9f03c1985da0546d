"""A local folder is a dataset: its splits are told apart, and its README is not rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nbtune.data import resolve
from nbtune.errors import DataError
from nbtune.spec import from_mapping


def texts(split: str = "train", **more: str) -> list[str]:
    spec = from_mapping({"data": [{"source": "set", "split": split, **more}]})
    return [row["text"] for row in resolve(spec.data, {})[0].rows]


def write(*names: str) -> None:
    for name in names:
        file = Path("set") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": name}) + "\n")


@pytest.mark.parametrize("form", ["{}.jsonl", "data/{}-00000-of-00001.jsonl", "{}/part.jsonl", "my_{}_rows.jsonl"])
def test_a_folders_splits_are_told_by_its_names(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(*(form.format(split) for split in ("train", "dev", "test")), "README.md")
    assert [texts(split) for split in ("train", "validation", "test")] == [
        [form.format(split)] for split in ("train", "dev", "test")
    ]
    with pytest.raises(DataError, match="no split `more`"):
        texts("more")
    with pytest.raises(DataError, match="config"):
        texts(config="en")
    write("extra.jsonl")
    with pytest.raises(DataError, match=r"extra\.jsonl"):
        texts()


def test_a_folder_without_splits_is_all_to_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("a.jsonl", "b.jsonl", "README.md")
    assert texts() == ["a.jsonl", "b.jsonl"]
    with pytest.raises(DataError, match="no split `test`"):
        texts("test")
