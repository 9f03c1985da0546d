"""A thousand corrupted files: each is one error with place and fix, or every row of it is accounted for."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbtune.data
from nbtune.data import resolve
from nbtune.errors import DataError, NbtuneError
from nbtune.spec import from_mapping
from tests.data.making import CHATML, tokenizer
from tests.support.every import every

GARBAGE: list[Any] = [
    None,
    3,
    float("nan"),
    True,
    "",
    [],
    {},
    [[]],
    [[[[[{}]]]]],
    {"role": 3},
    [{"role": "user"}],
    [{"from": "gpt", "value": None}],
    "\ud800",
    [None, "x"],
    -1e308,
]


def good(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        [
            {"prompt": "ask", "completion": "say"},
            {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]},
            {"instruction": "ask", "input": "", "output": "say"},
            {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
            {"text": "some text"},
        ]
    )


def wrong_types(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    for _ in range(rng.randint(1, 4)):
        row = rng.choice(rows)
        row[rng.choice(list(row))] = rng.choice(GARBAGE)
    return lines(rows)


def mixed_columns(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    for k in range(rng.randint(1, 5)):
        rows[rng.randrange(len(rows))] = rng.choice([good(rng), {f"other{k}": "x"}, {}])
    return lines(rows)


def other_values(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    values = [*rows, *rng.sample(GARBAGE, 2)]
    rng.shuffle(values)
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def cut_off(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    body = lines(rows)
    return body[: rng.randrange(len(body))]


def flipped(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    body = bytearray(lines(rows))
    for _ in range(rng.randint(1, 6)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(body)


def other_encoding(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    text = "".join(json.dumps({k: f"é{v}" for k, v in row.items()}, ensure_ascii=False) + "\n" for row in rows)
    return text.encode(rng.choice(["latin-1", "utf-16", "utf-32", "cp1252"]))


def nested(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    depth = rng.choice([50, 5000, 100_000])
    return lines(rows) + b'{"prompt": ' + b"[" * depth + b"]" * depth + b', "completion": "x"}\n'


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


WAYS: list[Callable[[random.Random, list[dict[str, Any]]], bytes]] = [
    *(wrong_types, mixed_columns, other_values, cut_off, flipped, other_encoding, nested)
]


def check(seed: int) -> None:
    rng = random.Random(seed)
    body = rng.choice(WAYS)(
        rng, [good(rng)] * rng.randint(1, 3) if rng.random() < 0.2 else [good(rng) for _ in "12345"]
    )
    name = f"rows{rng.choice(['.jsonl', '.jsonl', '.json', '.csv', '.parquet'])}"
    Path(name).write_bytes(body)
    spec = from_mapping({"data": name})
    told: list[NbtuneError] = []
    for on_error in ("raise", "skip"):
        try:
            prepared = nbtune.data.prepare_data(
                resolve(spec.data), tokenizer(CHATML), spec=spec, max_len=512, seed=0, on_error=on_error
            )
        except NbtuneError as error:
            told.append(error)
        else:
            report = prepared.report
            seen = {(e.source, e.row) for e in prepared.train} | {(f[0], f[1]) for f in report.fates}
            assert len(seen) == report.rows, (seed, name)
    for error in told:
        assert every((error.cause, error.place, error.fix)), (seed, name, error)


@pytest.mark.parametrize("part", range(2))
def test_corrupted_files(part: int) -> None:
    for seed in range(part * 100, part * 100 + 100):
        check(seed)


@pytest.mark.slow
def test_a_thousand_corrupted_files() -> None:
    for seed in range(1000):
        check(1_000_000 + seed)


def test_a_very_long_line() -> None:
    long = json.dumps({"prompt": "ask", "completion": "x" * (50 << 20)})
    Path("rows.jsonl").write_text(json.dumps({"prompt": "ask", "completion": "say"}) + "\n" + long[:-2] + "\n")
    spec = from_mapping({"data": "rows.jsonl"})
    with pytest.raises(NbtuneError, match="not JSON") as caught:
        nbtune.data.prepare_data(resolve(spec.data), tokenizer(CHATML), spec=spec, max_len=64, seed=0)
    assert caught.value.place == "rows.jsonl, line 2"
    assert len(str(caught.value)) < 500


def test_pipes_bombs_and_giant_rows_are_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    from nbtune.data.sources import compression, files, rows

    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.xz").write_bytes(b"junk")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b" " * 200_000))
    (tmp_path / "d.jsonl").write_bytes(b'{"a": "' + b"x" * 100 + b'"}')
    monkeypatch.setattr(compression, "ALWAYS", 1000)
    monkeypatch.setattr(rows, "_LONGEST_ROW", 50)
    said = {"a.jsonl": "a pipe", "b.jsonl.xz": "broken", "c.jsonl.gz": "times its own size", "d.jsonl": "the row has"}
    for name, words in said.items():
        with pytest.raises(DataError, match=words):
            files.read_file(tmp_path / name, name)[0]
    assert files.read_head(tmp_path / "b.jsonl.xz", "b", 3) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="wants pipes")
def test_a_file_that_a_run_cannot_read_any_more_is_named(tmp_path: Path) -> None:
    """As on another machine, where the file is nobody's to read, or something else stands in its place."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hi", "completion": "Ahoy!"}\n')
    nbtune.data.snapshot(resolve(from_mapping({"data": str(rows)}).data, {}), tmp_path / "data")
    rows.unlink()
    os.mkfifo(rows)
    with pytest.raises(DataError) as caught:
        nbtune.data.open_snapshot(tmp_path / "data")
    assert "the file cannot be read: rows.jsonl is no ordinary file" in caught.value.cause
    assert caught.value.fix
