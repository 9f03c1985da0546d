"""Rows that come one by one: no more of them than are asked for, and the same ones for everybody."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbtune
from nbtune.data import open_snapshot, resolve, snapshot
from nbtune.data.sources import stream
from nbtune.data.sources.snapshot import changed_rows
from nbtune.data.sources.variables import is_rows
from nbtune.errors import DataError
from nbtune.spec import SourceSpec


def _row(number: int) -> dict[str, str]:
    return {"prompt": f"How much is {number}?", "completion": str(number)}


class Counting:
    """An endless iterator that knows how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.asked += 1
        return _row(self.asked)


def test_an_endless_stream_is_asked_for_no_more_than_max_rows() -> None:
    stream = Counting()
    spec = {"data": {"source": stream, "max_rows": 40}, "steps": 2}
    assert nbtune.validate(spec).data[0].max_rows == 40
    assert stream.asked == 32, "of which the first are looked at"
    plan = nbtune.plan(spec)
    assert plan.rows + plan.eval_rows == 40
    assert stream.asked == 40


def test_a_plan_takes_no_rows_from_the_run(tmp_path: Any) -> None:
    stream = (_row(number) for number in range(60))
    assert nbtune.plan(data=stream, steps=1).rows == 57
    run = nbtune.finetune(data=stream, steps=1, runs_dir=tmp_path).wait()
    kept = list(open_snapshot(run.folder / "data")[0].rows)
    assert kept == [_row(number) for number in range(60)]


@given(st.integers(1, 9), st.sampled_from(["list", "function", "iterator", "columns", "dataset"]))
def test_max_rows_of_anything_are_its_first(most: int, holder: str) -> None:
    rows = [_row(number) for number in range(6)]

    def function() -> Iterator[dict[str, str]]:
        yield from rows

    values: dict[str, Any] = {
        "list": rows,
        "function": function,
        "iterator": iter(rows),
        "columns": {key: [row[key] for row in rows] for key in rows[0]},
        "dataset": datasets.Dataset.from_list(rows),
    }
    (source,) = resolve([SourceSpec(source="x", max_rows=most)], {"x": values[holder]})
    assert list(source.rows) == rows[:most]
    assert len(source.rows) == min(most, 6)
    with pytest.raises(IndexError):
        source.rows[min(most, 6)]


@pytest.mark.parametrize("make", [list, datasets.Dataset.from_list])
def test_the_same_rows_cut_at_max_rows_are_no_other_rows(make: Any, tmp_path: Any) -> None:
    rows = [_row(number) for number in range(6)]
    snapshot(resolve([SourceSpec(source="x", max_rows=4)], {"x": make(rows)}), tmp_path)
    assert changed_rows(tmp_path, {"x": make(rows)}) == []
    assert changed_rows(tmp_path, {"x": make([*rows[:4], *rows[:3]])}) == []
    assert changed_rows(tmp_path, {"x": make(rows[1:])}) == ["x"]


def test_a_generator_function_is_called_again_for_each_who_asks() -> None:
    numbers = itertools.count()

    def fresh() -> Iterator[dict[str, str]]:
        yield _row(next(numbers))

    found = [list(resolve([SourceSpec(source="fresh")], {"fresh": fresh})[0].rows) for _ in range(2)]
    assert found == [[_row(0)], [_row(1)]]


def test_what_a_run_looks_at_first_it_keeps(tmp_path: Any) -> None:
    numbers = itertools.count()

    def fresh() -> Iterator[dict[str, str]]:
        for _ in range(50):
            yield _row(next(numbers))

    sources = resolve([SourceSpec(source="fresh")], {"fresh": fresh})
    assert next(iter(sources[0].head(3) or [])) == _row(0)
    assert list(snapshot(sources, tmp_path)[0].rows) == [_row(number) for number in range(50)]


def test_a_stream_that_breaks_says_where_and_goes_on_saying_so() -> None:
    def breaking() -> Iterator[dict[str, str]]:
        yield _row(0)
        raise OSError("the line is dead")

    (source,) = resolve([SourceSpec(source="breaking")], {"breaking": breaking})
    for _ in range(2):
        with pytest.raises(DataError, match="`breaking` failed: OSError: the line is dead") as caught:
            list(source.rows)
        assert "breaking, row 1" in str(caught.value)
    (bounded,) = resolve([SourceSpec(source="breaking", max_rows=1)], {"breaking": breaking})
    assert list(bounded.rows) == [_row(0)]


def _given(stream: Iterator[Any], **more: Any) -> list[Any]:
    (source,) = resolve([SourceSpec(source="stream", **more)], {"stream": stream})
    return list(source.rows)


def test_of_an_iterator_that_broke_the_rows_before_are_there() -> None:
    def breaking() -> Iterator[dict[str, str]]:
        yield from (_row(number) for number in range(3))
        raise OSError("the line is dead")

    once = breaking()
    for _ in range(2):
        with pytest.raises(DataError, match="`stream` failed: OSError: the line is dead"):
            _given(once)
    assert _given(once, max_rows=3) == [_row(0), _row(1), _row(2)]


def test_a_row_that_cannot_be_written_down_is_not_passed_over() -> None:
    stream = iter([_row(0), {"prompt": object()}, _row(2)])
    for _ in range(2):
        with pytest.raises(DataError, match="stream, row 1"):
            _given(stream)
    assert _given(stream, max_rows=1) == [_row(0)]


def test_an_interrupted_stream_does_not_look_as_if_it_had_ended() -> None:
    def slow() -> Iterator[dict[str, str]]:
        yield _row(0)
        raise KeyboardInterrupt

    stream = slow()
    with pytest.raises(KeyboardInterrupt):
        _given(stream)
    with pytest.raises(DataError, match="`stream` failed: KeyboardInterrupt"):
        _given(stream)


def test_files_and_functions_that_want_something_are_no_streams(tmp_path: Any) -> None:
    with (tmp_path / "x").open("w+") as file:
        assert not is_rows(file)
    assert not is_rows(lambda path: (yield path))
    assert not is_rows(print)
    assert is_rows(Counting())


def test_a_stream_without_an_end_is_refused_where_nobody_says_how_much_of_it(monkeypatch: Any) -> None:
    monkeypatch.setattr(stream, "_MOST_UNASKED", 3000)
    endless = Counting()
    [source] = resolve([SourceSpec(source="rows")], {"rows": endless})
    with pytest.raises(DataError, match="row 3000: it goes on after 3,000 rows") as caught:
        len(source.rows)
    assert "max_rows: 10000" in (caught.value.fix or "")
    assert endless.asked == 3000
    [some] = resolve([SourceSpec(source="rows", max_rows=5000)], {"rows": Counting()})
    assert len(some.rows) == 5000


def test_a_stream_does_not_fill_the_disk(monkeypatch: Any) -> None:
    monkeypatch.setattr(stream, "free_bytes", lambda path: 50_000)
    [source] = resolve([SourceSpec(source="rows")], {"rows": Counting()})
    with pytest.raises(DataError, match=r"it goes on after 1,000 rows, which take .* of the disk, more than is left"):
        len(source.rows)
    [some] = resolve([SourceSpec(source="rows", max_rows=20)], {"rows": Counting()})
    assert len(some.rows) == 20
