"""Prepared data is kept by its content, and what is read back is what was written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbtune.data
from nbtune.data import Prepared, resolve
from nbtune.data.prepare import cache
from nbtune.data.prepare.row_pipeline import Reader
from nbtune.data.sources.cache_folder import new_place, prepared_folder
from nbtune.spec import from_mapping
from tests.data.making import CHATML, RECREATED, tokenizer


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(Path("cache").absolute()))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that rows were really read."""
    found: list[int] = []
    read = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, *given: found.append(1) or read(self, *given))
    return found


def prepare(name: str = "rows.jsonl", fast: Any = None, max_len: int = 64, **fields: Any) -> Prepared:
    spec = from_mapping({"data": name, **fields})
    fast = fast or tokenizer(CHATML)
    return nbtune.data.prepare_data(resolve(spec.data), fast, spec=spec, max_len=max_len, seed=spec.seed)


def write(count: int, name: str = "rows.jsonl", word: str = "say") -> None:
    rows = [{"prompt": f"ask {i}", "completion": f"{word} {i} " + "long " * (40 * (i == 7))} for i in range(count)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_second_start_reads_what_was_kept(reads: list[int]) -> None:
    write(2100)
    first, second = prepare(), prepare()
    assert reads == [1]
    for name in ("ids", "trained", "starts", "source_of", "row_of"):
        np.testing.assert_array_equal(getattr(first.train, name), getattr(second.train, name))
    assert second.eval is not None
    assert first.eval is not None
    assert [e.row for e in second.eval] == [e.row for e in first.eval]
    assert second.report == first.report
    assert second.facts == first.facts
    assert second.chat_template == CHATML
    assert second.report.fates == [("rows.jsonl", 7, "cut", "longer than 64 tokens")]


def test_any_change_is_another_preparation(reads: list[int]) -> None:
    write(2100)
    prepare()
    prepare(seed=1)
    prepare(max_len=65)
    prepare(train_on="all")
    prepare(eval={"split": 0.1})
    prepare(fast=tokenizer(RECREATED["zephyr"]))
    write(2100, word="sag")
    prepare()
    assert len(reads) == 7
    assert len(cache.entries()) == 7
    prepare(learning_rate=1e-5)  # nothing that tokens depend on
    assert len(reads) == 7


def test_the_models_own_template_is_part_of_it(reads: list[int]) -> None:
    """Two models may share a tokenizer and differ in how they write a chat."""
    write(2100)
    first, second = tokenizer(CHATML), copy.deepcopy(tokenizer(CHATML))
    second.chat_template = CHATML.replace("<|im_start|>", "<|im_start|>:", 1)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(prepare(fast=first).train.ids) < len(prepare(fast=second).train.ids)
    assert len(reads) == 2


def test_small_data_and_variables_are_not_kept(reads: list[int]) -> None:
    write(100)
    prepare()
    spec = from_mapping({"data": "rows"})
    rows = [{"text": f"t {i}"} for i in range(2100)]
    nbtune.data.prepare_data(resolve(spec.data, {"rows": rows}), tokenizer(CHATML), spec=spec, max_len=9, seed=0)
    assert cache.entries() == []


@pytest.mark.parametrize("damage", ["flip", "cut", "lost"])
def test_what_is_damaged_on_disk_is_made_again(reads: list[int], damage: str) -> None:
    write(2100)
    prepare()
    (file,) = prepared_folder().glob("*/train-ids.npy")
    body = bytearray(file.read_bytes())
    body[-5] ^= 1
    {
        "flip": lambda: file.write_bytes(body),
        "cut": lambda: file.write_bytes(body[:1000]),
        "lost": file.unlink,
    }[damage]()
    again = prepare()
    assert len(reads) == 2
    assert again.train[0].input_ids


def test_a_place_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("NBTUNE_CACHE", str(Path("file").absolute()))
    write(2100)
    assert len(prepare().train) > 1000


def test_the_oldest_is_thrown_away_first() -> None:
    import os

    write(2100)
    for seed in (1, 2, 3):
        prepare(seed=seed)
    for age, (key, _, _) in enumerate(cache.entries()):
        os.utime(prepared_folder() / key, (age, age))
    oldest = cache.entries()[0]
    assert cache.prune(sum(size for _, size, _ in cache.entries()) - 1) == oldest[1]
    assert oldest[0] not in {key for key, _, _ in cache.entries()}
    assert cache.prune() > 0
    assert cache.entries() == []


def test_what_a_killed_process_left_is_swept_away_after_a_day() -> None:
    import os

    old, young = (prepared_folder() / name for name in ("new-old", "new-young"))
    for place in (old, young):
        place.mkdir(parents=True)
    os.utime(old, (0, 0))
    assert [key for key, _, _ in cache.entries()] == ["new-old"]
    place = new_place()
    assert place is not None
    assert not old.exists()
    assert young.exists()
