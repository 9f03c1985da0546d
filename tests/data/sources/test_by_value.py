"""Rows that are handed over themselves: what is a row, a source or a name, and what of it the spec says."""

from __future__ import annotations

import functools
import io
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtune.data import resolve
from nbtune.data.sources.by_value import name_rows, spec_with_named_rows
from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.spec import SourceSpec, from_yaml, to_yaml

ROWS = [{"prompt": f"Hi {k}", "completion": "Ahoy!"} for k in range(4)]
COLUMNS = {key: [row[key] for row in ROWS] for key in ROWS[0]}


def _one_by_one(rows: list[dict[str, str]] = ROWS) -> Iterator[dict[str, str]]:
    yield from rows


HOLDERS: dict[str, Callable[[], Any]] = {
    "list": lambda: list(ROWS),
    "tuple": lambda: tuple(ROWS),
    "columns": lambda: dict(COLUMNS),
    "pandas": lambda: pd.DataFrame(ROWS),
    "polars": lambda: pl.DataFrame(ROWS),
    "lazy": lambda: pl.DataFrame(ROWS).lazy(),
    "arrow": lambda: pa.table(COLUMNS),
    "dataset": lambda: datasets.Dataset.from_list(ROWS),
    "splits": lambda: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
    "stream": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "generator": lambda: functools.partial(_one_by_one, ROWS),
    "iterator": lambda: _one_by_one(),
    "map": lambda: map(dict, ROWS),
}
held = st.sampled_from(sorted(HOLDERS))
listed = st.sampled_from(sorted({*HOLDERS} - {"columns"}))  # in a list that would be a row
words = st.sampled_from(["rows", "rows_2", "eval_rows", "more.jsonl", "owner/set", "var:rows"])
FIELDS = st.sampled_from(sorted(SourceSpec.model_fields))


@pytest.mark.parametrize("holder", HOLDERS)
def test_rows_by_value_are_the_rows(holder: str) -> None:
    spec, variables = spec_with_named_rows(None, {"data": HOLDERS[holder](), "eval": {"data": HOLDERS[holder]()}}, None)
    for sources, name in ((spec.data, "rows"), ([spec.eval.data], "eval_rows")):
        (source,) = resolve(sources, variables)
        assert (source.name, source.spec.source) == (name, f"var:{name}")
        assert list(source.rows) == ROWS


@given(st.lists(listed | words, min_size=1, max_size=5), held | words, st.sets(words, max_size=4))
def test_every_value_gets_a_name_of_its_own_and_the_spec_stays_plain(
    entries: list[str], apart: str, variables: set[str]
) -> None:
    mix = [HOLDERS[entry]() if entry in HOLDERS else entry for entry in entries]
    held_out = HOLDERS[apart]() if apart in HOLDERS else apart
    mine: dict[str, Any] = {name: [{"text": name}] for name in variables}
    spec, named = spec_with_named_rows(None, {"data": mix, "eval": {"data": held_out}}, mine)
    assert from_yaml(to_yaml(spec)) == spec
    assert [name for name in mine if named[name] is not mine[name]] == [], "what a name meant it still means"
    assert spec.eval.data is not None
    theirs = {word.removeprefix("var:") for word in [*entries, apart] if word not in HOLDERS}
    for value, source in zip([*mix, held_out], [*spec.data, spec.eval.data], strict=True):
        if isinstance(value, str):
            assert source.source == value
        else:
            name = source.source.removeprefix("var:")
            assert named[name] is value
            assert name not in theirs | set(mine)


@given(st.dictionaries(FIELDS, st.text(max_size=3), min_size=1))
def test_a_mapping_of_nothing_but_keys_of_a_source_is_a_source(entry: dict[str, str]) -> None:
    made, _ = name_rows({"data": [entry]})
    assert made["data"] == [entry]


@given(st.dictionaries(st.sampled_from(["prompt", "completion", "text", "id", "source"]), st.text(), min_size=2))
def test_rows_may_have_a_column_called_source(row: dict[str, str]) -> None:
    made, named = name_rows({"data": [row, row]})
    assert (made["data"], named) == ("var:rows", {"rows": [row, row]})


def test_rows_within_a_source_and_beside_names() -> None:
    table = pd.DataFrame(ROWS)
    spec, named = spec_with_named_rows(None, {"data": [{"source": table, "weight": 2}, Path("more.jsonl"), ROWS]}, None)
    assert [(s.source, s.weight) for s in spec.data] == [("var:rows", 2), ("more.jsonl", 1), ("var:rows_2", 1)]
    assert named["rows"] is table
    assert named["rows_2"] is ROWS


def test_a_variable_that_is_handed_over_keeps_its_name() -> None:
    table, unlike = pd.DataFrame(ROWS), pd.DataFrame(ROWS)
    spec, named = spec_with_named_rows(
        {"data": table}, {"eval.data": unlike, "eval.every": 2}, {"_": table, "table": table}
    )
    assert (spec.data[0].source, spec.eval.every) == ("var:table", 2)
    assert spec.eval.data == SourceSpec(source="var:eval_rows")
    assert named["eval_rows"] is unlike


def test_a_text_s_names_keep_their_meaning() -> None:
    spec, named = spec_with_named_rows("eval: {data: rows}\nadapter: qlora", {"data": ROWS, "adapter.r": 8}, None)
    assert (spec.data[0].source, spec.adapter.type, spec.adapter.r) == ("var:rows_2", "qlora", 8)
    assert spec.eval.data == SourceSpec(source="rows")
    assert named["rows_2"] is ROWS


def test_bare_conversations_are_rows() -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy!"}]
    assert name_rows({"data": [talk, talk]})[0]["data"] == "var:rows"
    assert name_rows({"data": [ROWS, ROWS[:2]]})[0]["data"] == ["var:rows", "var:rows_2"]


Pair = namedtuple("Pair", "prompt completion")
COLUMN_HOLDERS: dict[str, Callable[[list[str]], Any]] = {
    "tuples": tuple,
    "numpy": np.array,
    "pandas": pd.Series,
    "polars": pl.Series,
    "filtered": lambda texts: pd.Series(["", *texts])[1:],
}


@pytest.mark.parametrize("holder", COLUMN_HOLDERS)
def test_columns_are_whatever_holds_them(holder: str) -> None:
    made = {key: COLUMN_HOLDERS[holder]([row[key] for row in ROWS]) for key in ROWS[0]}
    spec, named = spec_with_named_rows(None, {"data": made}, None)
    [source] = resolve(spec.data, named)
    assert list(source.rows) == ROWS
    with pytest.raises(DataError, match="different lengths"):
        _ = resolve(spec.data, {"rows": {**made, "prompt": made["prompt"][:1]}})[0].rows


def test_an_index_that_has_a_name_is_a_column() -> None:
    frame = pd.DataFrame(ROWS)
    for indexed in (frame.set_index("prompt"), frame.set_index(["prompt", "completion"]), frame.rename_axis("prompt")):
        [source] = resolve([SourceSpec(source="rows")], {"rows": indexed})
        assert list(source.rows) == ROWS
    counted = frame.groupby("prompt", observed=True).first()
    assert {row["prompt"] for row in resolve([SourceSpec(source="rows")], {"rows": counted})[0].rows} == {
        row["prompt"] for row in ROWS
    }


REFUSED: dict[str, tuple[Any, type[NbtuneError], str]] = {
    "nothing": ([], DataError, "empty list"),
    "nothing in a source": ({"source": []}, DataError, "empty list"),
    "nothing in a list": ([ROWS, []], DataError, "empty list"),
    "a function that gives one row": (lambda: ROWS[0], DataError, "type function is not rows"),
    "a generator that wants to know something": (lambda path: (yield path), DataError, "type function is not rows"),
    "a file": (io.StringIO("{}"), DataError, "type StringIO is not rows"),
    "numbers": ([1, 2], DataError, "type int is not rows"),
    "a number": (3, DataError, "type int is not rows"),
    "a set": ({1, 2}, DataError, "type set is not rows"),
    "a column": (pd.Series([1]), DataError, "type Series is not rows"),
    "pairs": ([("Hi", "Ahoy!"), ("Bye", "Farewell!")], DataError, "pairs of texts, not rows"),
    "pairs as lists": ([["Hi", "Ahoy!"], ["Bye", "Farewell!"]], DataError, "pairs of texts, not rows"),
    "one pair": ([("Hi", "Ahoy!")], DataError, "pairs of texts, not rows"),
    "threes": ([("be short", "Hi", "Ahoy!"), ("be long", "Bye", "Farewell!")], DataError, "3 texts each, not rows"),
    "threes as lists": ([["be short", "Hi", "Ahoy!"], ["be long", "Bye", "Oh"]], DataError, "3 texts each, not rows"),
    "streams of splits": (
        datasets.IterableDatasetDict({"train": datasets.Dataset.from_list(ROWS).to_iterable_dataset()}),
        DataError,
        r"sets of rows \(train\)",
    ),
    "sets of splits": ({"train": datasets.Dataset.from_list(ROWS)}, DataError, r"sets of rows \(train\)"),
    "named tuples": ([Pair("Hi", "Ahoy!")], DataError, "type Pair is not rows"),
    "several sets": (
        {"train": pd.DataFrame(ROWS), "test": pd.DataFrame(ROWS)},
        DataError,
        r"sets of rows \(train, test\)",
    ),
    "several streams": ({"train": iter(ROWS), "test": iter(ROWS)}, DataError, r"sets of rows \(train, test\)"),
    "junk among rows": ([ROWS[0], 3], DataError, "type int is not rows"),
    "one row": (ROWS[0], DataError, "not all columns"),
    "an empty dict": ({}, DataError, "not all columns"),
    "a row beside a name": ([ROWS[0], "more.jsonl"], SpecError, r"\[0\] is a row, \[1\] is a name"),
    "a row beside a source": ([{"source": "x"}, ROWS[0]], SpecError, r"\[1\] is a row, \[0\] is a source"),
    "a row beside rows": ([ROWS[0], pd.DataFrame(ROWS)], SpecError, r"\[1\] is a table of rows"),
    "half of each": ([{"source": "x", "weight": 2, **ROWS[0]}], SpecError, "half a source .* half a row"),
    "half of each, alone": ({"source": ROWS, "weight": 2, "prompt": "x"}, SpecError, "half a source"),
    "a slip of the pen": ([{"source": "x", "wieght": 2}], SpecError, "no key `wieght`"),
    "a source with a foreign key": ({"source": "x", "foo": 2}, SpecError, "no key `foo`"),
    "no source": ({"weight": 2}, SpecError, "`data.source` is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_neither_is_said_in_a_sentence(case: str) -> None:
    value, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        spec_with_named_rows(None, {"data": value}, None)
    assert caught.value.fix
    assert len(str(caught.value).splitlines()) == 2


def test_a_table_is_no_spec() -> None:
    with pytest.raises(SpecError, match="no spec"):
        spec_with_named_rows(ROWS, {}, None)  # type: ignore[arg-type]
