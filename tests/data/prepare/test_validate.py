"""The first rows are looked at before a run is made: what is wrong with them is said at once, and nothing else is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from nbtune.data import look, resolve
from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.spec import from_mapping, from_yaml, placing

ROW = {"question": "How much is 1 plus 1?", "reply": "2"}


def looked(body: Any, base: Path, rows: Any = None) -> None:
    """Looks at the rows of a spec in a folder."""
    spec = from_mapping(body)
    look(resolve(spec.data, {"rows": rows} if rows is not None else {}, base_dir=base), spec)


def write(base: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Writes rows in the kind of file that its name says."""
    table = pandas.DataFrame(rows)
    if ".jsonl" in name:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (base / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    elif name.endswith(".json"):
        (base / name).write_text(json.dumps(rows))
    elif name.endswith(".csv"):
        table.to_csv(base / name, index=False)
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pandas(table), base / name)
    else:
        pyarrow.feather.write_feather(table, str(base / name))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "a.feather"])
def test_a_column_that_is_not_there(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, [ROW] * 3)
    with pytest.raises(SpecError) as caught:
        looked({"data": {"source": name, "columns": {"prompt": "question", "completion": "repply"}}}, tmp_path)
    assert "no column `repply`" in str(caught.value)
    assert "`question`, `reply`" in str(caught.value)
    assert "did you mean `reply`?" in caught.value.fix
    assert caught.value.keys == ("data", 0, "columns", "completion")
    looked({"data": {"source": name, "columns": {"prompt": "question", "completion": "reply"}}}, tmp_path)


@pytest.mark.parametrize("kind", [list, pandas.DataFrame, lambda rows: pyarrow.Table.from_pylist(rows)])
def test_columns_that_fit_no_format(tmp_path: Path, kind: Any) -> None:
    rows = kind([{"colour": "red", "size": 3}] * 3)
    with pytest.raises(DataError, match=r"`colour`, `size`.*none that nbtune knows"):
        looked({"data": "rows"}, tmp_path, rows)
    with pytest.raises(DataError, match="wanted"):
        looked({"data": "rows", "method": "dpo"}, tmp_path, kind([{"prompt": "Hi", "completion": "Ho"}] * 3))


def test_the_line_is_that_of_the_text(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", [ROW])
    text = "steps: 3\ndata:\n  - a.csv\n  - source: a.csv\n    columns:\n      prompt: qestion\n"
    spec = from_yaml(text)
    with pytest.raises(NbtuneError) as caught, placing(text, name="the cell", first_line=2):
        look(resolve(spec.data, base_dir=tmp_path), spec)
    assert caught.value.place.startswith("line 4 of the cell")  # a.csv alone: `reply` is no known answer's name
    text = "data:\n  source: a.csv\n  columns:\n    prompt: qestion\n    completion: reply\n"
    spec = from_yaml(text)
    with pytest.raises(NbtuneError) as caught, placing(text, name="the cell", first_line=2):
        look(resolve(spec.data, base_dir=tmp_path), spec)
    assert caught.value.place == "line 5 of the cell (a.csv)"


def test_only_the_head_of_a_file_is_read(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "Hi", "completion": "Ho " * 1000}) + "\n"
    (tmp_path / "long.jsonl").write_text(good * 2000 + "this is no JSON\n")
    looked({"data": "long.jsonl"}, tmp_path)
    (tmp_path / "long.csv").write_text("prompt,completion\n" + ("Hi," + "Ho " * 1000 + "\n") * 2000 + "a,b,c\n")
    looked({"data": "long.csv"}, tmp_path)


def test_what_later_rows_hold_is_no_mistake(tmp_path: Path) -> None:
    late = [{"prompt": "Hi", "answer": None}] * 40 + [{"prompt": "Hi", "answer": "Ho"}] * 40
    write(tmp_path, "late.jsonl", [{"note": "x"}] * 40 + [{"note": "x", "prompt": "Hi", "completion": "Ho"}] * 40)
    looked({"data": {"source": "late.jsonl", "columns": {"prompt": "prompt"}}, "on_error": "skip"}, tmp_path)
    looked({"data": "rows", "on_error": "skip"}, tmp_path, pandas.DataFrame(late))


def test_a_broken_row_is_said_with_its_line_unless_it_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Hi", "completion": "Ho"}\n{"prompt": "Hi", "comp\n')
    with pytest.raises(DataError) as caught:
        looked({"data": "a.jsonl"}, tmp_path)
    assert "line 2" in caught.value.place
    looked({"data": "a.jsonl", "on_error": "skip"}, tmp_path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_without_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("prompt,completion\n" if name == "a.csv" else "")
    with pytest.raises(DataError, match="no rows"):
        looked({"data": name}, tmp_path)


def test_a_function_is_tried_on_a_few_rows(tmp_path: Path) -> None:
    seen = []

    def as_text(row: dict[str, Any]) -> dict[str, Any]:
        seen.append(row)
        return {"colour": row["question"], "size": 3}

    spec = from_mapping({"data": {"source": "rows", "function": "as_text"}})
    sources = resolve(spec.data, {"rows": [ROW] * 4, "as_text": as_text}, base_dir=tmp_path)
    with pytest.raises(DataError, match="`colour`"):
        look(sources, spec)
    assert seen
