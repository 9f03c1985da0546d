"""Data sets by somebody who read our code: files of holes, texts that are meant a million times, links out of them."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import nbtune
from nbtune.data import resolve
from nbtune.data.sources import files, parquet_bomb, rows
from nbtune.errors import DataError
from nbtune.spec import from_mapping

ROW = {"prompt": "Hi", "completion": "Ahoy!"}


def read(name: str) -> list[Any]:
    return [source.rows for source in resolve(from_mapping({"data": name}).data)]


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.txt"])
def test_what_is_read_whole_is_no_larger_than_memory(name: str) -> None:
    Path(name).write_text("[")
    os.truncate(name, 1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(DataError, match="is read whole"):
        read(name)


def test_a_line_without_an_end_is_not_looked_for_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_LONGEST_ROW", 1 << 20)
    Path("a.jsonl").write_text(json.dumps(ROW) + "\n")
    os.truncate("a.jsonl", 1 << 40)
    with pytest.raises(DataError, match="a row has more than"):
        read("a.jsonl")


def _as_one(text: str, times: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), [text])


BOMBS = {
    "a column": lambda: _as_one("x" * (1 << 20), 20_000),
    "in a list": lambda: pa.ListArray.from_arrays(list(range(20_001)), _as_one("x" * (1 << 20), 20_000)),
    "in an object": lambda: pa.StructArray.from_arrays([_as_one("x" * (1 << 20), 20_000)], ["a"]),
}


@pytest.mark.parametrize("way", BOMBS)
def test_a_text_that_is_meant_a_million_times_is_not_written_out(way: str) -> None:
    table = pa.table({"prompt": BOMBS[way](), "completion": ["y"] * 20_000})
    parquet.write_table(table, "a.parquet", store_schema=False)
    assert Path("a.parquet").stat().st_size < 4 << 20
    with pytest.raises(DataError, match="over 100 times its own size"):
        read("a.parquet")


def test_rows_of_nothing_are_counted_too() -> None:
    with parquet.ParquetWriter("a.parquet", pa.schema([("prompt", pa.string())])) as out:
        nothing = pa.table({"prompt": pa.nulls(2_000_000, pa.string())})
        for _ in range(40):
            out.write_table(nothing)
    with pytest.raises(DataError, match="over 100 times its own size"):
        read("a.parquet")


def test_what_is_meant_is_counted_as_it_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, texts = random.Random(0), ["", "a", "é" * 40, "x" * 300]
    column = [chance.choice([*texts, None]) for _ in range(500)]
    chats = [[{"role": "user", "content": chance.choice(texts)}] * chance.randrange(3) for _ in range(500)]
    parquet.write_table(pa.table({"a": column, "m": chats, "n": list(range(500))}), "a.parquet", row_group_size=64)
    right = sum(len((text or "").encode()) for text in column)
    right += sum(len(one["content"].encode()) + len("user") for chat in chats for one in chat)
    counted: list[int] = []
    meant = parquet_bomb._meant
    monkeypatch.setattr(parquet_bomb, "_meant", lambda one: counted.append(meant(one)) or counted[-1])
    monkeypatch.setattr(parquet_bomb, "_at_most", lambda *_: 1 << 60)
    files.read_file(Path("a.parquet"), "a")
    assert sum(counted) == right


@pytest.mark.parametrize("name", ["a.jsonl", "README.md"])
def test_a_folder_of_data_reads_no_file_of_somewhere_else(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "own").write_text("---\nconfigs: []\n---\n" if name == "README.md" else json.dumps(ROW) + "\n")
    (folder / "b.jsonl").write_text(json.dumps(ROW) + "\n")
    (folder / name).symlink_to(tmp_path / "own")
    with pytest.raises(DataError, match="a link to a file elsewhere"):
        read(str(folder))
    if name == "a.jsonl":
        assert list(read(f"{folder}/a*.jsonl")[0]) == [ROW]  # named by the user


def test_a_set_in_the_hubs_cache_is_a_folder_of_links(tmp_path: Path) -> None:
    made, blobs = tmp_path / "datasets--you--it" / "snapshots" / "abc", tmp_path / "datasets--you--it" / "blobs"
    made.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0f3a").write_text(json.dumps(ROW) + "\n")
    (made / "a.jsonl").symlink_to(os.path.relpath(blobs / "0f3a", made))
    assert list(read(str(made))[0]) == [ROW]


def test_a_file_of_arrow_is_opened_again(tmp_path: Path) -> None:
    """It was taken for a folder of datasets', which has another file beside it."""
    table = pa.table({key: [value] * 3 for key, value in ROW.items()})
    with pa.OSFile("a.arrow", "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    sources = resolve(from_mapping({"data": "a.arrow"}).data)
    (source,) = nbtune.data.snapshot(sources, tmp_path / "kept")
    assert list(source.rows) == [ROW] * 3
