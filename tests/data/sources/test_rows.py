"""Rows from everything that holds rows; names that match nothing, or two things; and their snapshot in a run folder."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from nbtune.data import Source, open_snapshot, resolve, snapshot
from nbtune.data.sources.files import read_file
from nbtune.data.sources.variables import is_rows, rows_of
from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.spec import SourceSpec

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]


def one(name: str, namespace: dict[str, Any] | None = None, **fields: Any) -> Source:
    return resolve([SourceSpec(source=name, **fields)], namespace, base_dir=Path.cwd())[0]


def write(path: str, rows: list[dict[str, Any]]) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(file.suffix, open)
    with opener(file, "wt", encoding="utf-8") as handle:
        handle.write(text)
    return file


def frames() -> dict[str, Any]:
    import datasets
    import pandas
    import polars
    import pyarrow

    columns = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    return {
        "list": ROWS,
        "tuple": tuple(ROWS),
        "columns": columns,
        "pandas": pandas.DataFrame(ROWS),
        "polars": polars.DataFrame(ROWS),
        "lazy": polars.LazyFrame(ROWS),
        "arrow": pyarrow.table(columns),
        "dataset": datasets.Dataset.from_list(ROWS),
        "shuffled-dataset": datasets.Dataset.from_list(ROWS[::-1]).select([4, 3, 2, 1, 0]),
        "dataset-dict": datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
    }


def test_every_kind_of_variable() -> None:
    for name, value in frames().items():
        assert is_rows(value), name
        rows = one("data", {"data": value}).rows
        assert list(rows) == ROWS, name
        assert len(rows) == 5
        assert rows[3] == ROWS[3]


def test_a_frame_with_holes_and_mixed_columns() -> None:
    import pandas

    holes = list(rows_of(pandas.DataFrame({"a": ["x", None], "n": [1.5, float("nan")]}), "f"))
    assert holes == [{"a": "x", "n": 1.5}, {"a": None, "n": None}]
    mixed = list(rows_of(pandas.DataFrame({"a": ["x", 3, [1]]}), "f"))
    assert mixed == [{"a": "x"}, {"a": 3}, {"a": [1]}]


def test_strings_and_bare_conversations_are_rows() -> None:
    assert list(rows_of(["one", "two"], "r")) == [{"text": "one"}, {"text": "two"}]
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert list(rows_of([chat], "r")) == [{"messages": chat}]


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json", "jsonl.gz", "jsonl.bz2", "jsonl.xz"])
def test_json_files(ending: str) -> None:
    write(f"rows.{ending}", ROWS)
    assert list(one(f"rows.{ending}").rows) == ROWS


def test_other_files(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame(ROWS)
    frame.to_csv("rows.csv", index=False)
    frame.to_csv("rows.tsv", index=False, sep="\t")
    frame.to_csv("semicolons.csv", index=False, sep=";")
    frame.to_parquet("rows.parquet")
    frame.to_feather("rows.feather")
    Path("list.json").write_text(json.dumps(ROWS))
    Path("wrapped.json").write_text(json.dumps({"version": 2, "data": ROWS}))
    Path("exported.json").write_text(json.dumps({"when": "2026-11-30", "conversations": ROWS}))
    Path("bom.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in ROWS) + b"\n\n")
    for name in (
        "rows.csv",
        "rows.tsv",
        "semicolons.csv",
        "rows.parquet",
        "rows.feather",
        "list.json",
        "wrapped.json",
        "exported.json",
        "bom.jsonl",
    ):
        assert list(one(name).rows) == ROWS, name
    talk = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy!"}]}
    Path("talk.json").write_text(json.dumps(talk))
    assert list(one("talk.json").rows) == [talk]  # one row
    Path("story.txt").write_text("Once\nupon a time.\n", encoding="utf-8")
    assert list(one("story.txt").rows) == [{"text": "Once\nupon a time.\n"}]


def test_zstandard(tmp_path: Path) -> None:
    import pyarrow

    with pyarrow.output_stream("rows.jsonl.zst", compression="zstd") as stream:
        stream.write(Path(write("rows.jsonl", ROWS)).read_bytes())
    assert list(one("rows.jsonl.zst").rows) == ROWS


def test_folders_and_patterns() -> None:
    write("many/b.jsonl", ROWS[3:])
    write("many/a.jsonl.gz", ROWS[:3])
    write("many/.hidden/c.jsonl", ROWS)
    Path("many/readme.pdf").write_text("no")
    assert list(one("many").rows) == ROWS
    assert list(one("many/*.jsonl").rows) == ROWS[3:]
    rows = one("many").rows
    assert [rows[i] for i in range(5)] == ROWS
    assert rows.place(4) == "b.jsonl, line 2"


def test_a_dataset_saved_to_disk() -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(splits).save_to_disk("splits")
    for name in ("saved", "splits"):
        assert list(one(name).rows) == ROWS
        snapshot([one(name)], Path("run"))
        assert list(open_snapshot(Path("run"))[0].rows) == ROWS


def test_own_sets() -> None:
    source = one("nbtune/json-answers")
    assert source.kind == "set"
    assert {"instruction", "output"} <= set(source.rows[0])
    with pytest.raises(DataError, match="no set"):
        one("nbtune/nothing")


def test_a_name_that_is_two_things_is_refused_with_both_spellings() -> None:
    write("rows", ROWS)
    with pytest.raises(SpecError) as caught:
        one("rows", {"rows": ROWS})
    assert "var:rows" in caught.value.fix
    assert "file:rows" in caught.value.fix
    assert one("var:rows", {"rows": ROWS}).kind == "variable"
    assert one("file:rows", {"rows": ROWS}).kind == "file"


def test_a_name_that_is_a_file_and_a_known_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path("cache").absolute()))
    Path("cache/datasets--owner--set").mkdir(parents=True)
    write("owner/set/a.jsonl", ROWS)
    with pytest.raises(SpecError, match="Hub") as caught:
        one("owner/set")
    assert "hub:owner/set" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("rowz.jsonl", "no file", "`xrows.jsonl`"),
        ("var:rosw", "no variable", "`rows`"),
        ("rosw", "no variable", "`rows`"),
        ("number", "int, not rows", "list of dicts"),
        ("var:number", "int, not rows", "list of dicts"),
        ("none/*.jsonl", "no file", "`rows`"),
        ("file:none/*.jsonl", "no file matches", "pattern"),
        ("empty", "holds no data files", ".jsonl"),
    ],
)
def test_names_that_match_nothing(name: str, message: str, hint: str) -> None:
    write("xrows.jsonl", ROWS)
    Path("empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        one(name, {"rows": ROWS, "number": 3})
    assert hint in caught.value.fix


def test_a_dataset_of_the_hub_without_a_network_is_one_error() -> None:
    with pytest.raises(NbtuneError, match="could not be loaded") as caught:
        one("hub:nobody/nothing").rows  # noqa: B018
    assert caught.value.place == "hub:nobody/nothing"


def test_two_sources_of_one_name_are_told_apart() -> None:
    names = [s.name for s in resolve([SourceSpec(source="r")] * 2 + [SourceSpec(source="s")], {"r": ROWS, "s": ROWS})]
    assert names == ["r (1)", "r (2)", "s"]


@pytest.mark.parametrize("empty", [[], (), {"a": []}])
def test_empty_data_is_refused(empty: Any) -> None:
    with pytest.raises(DataError, match="no rows"):
        one("data", {"data": empty}).rows  # noqa: B018


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_an_empty_file_is_refused(name: str) -> None:
    Path(name).write_text("\n")
    with pytest.raises(DataError, match="no rows") as caught:
        one(name).rows  # noqa: B018
    assert caught.value.place == name


BROKEN = {
    "cut.jsonl": (b'{"a": 1}\n{"a": ', "line 2", "not JSON"),
    "latin.jsonl": ('{"a": "é"}\n'.encode("latin-1"), "line 1", "UTF-8"),
    "number.jsonl": (b'{"a": 1}\n3\n', "line 2", "mapping"),
    "cut.json": (b'[{"a": 1}, ', "cut.json", "not JSON"),
    "number.json": (b"3", "number.json", "not a list"),
    "ragged.csv": (b"a,b\n1,2\n1,2,3\n", "line 3", "3 cells"),
    "quotes.csv": (b'a,b\n"1,2\n', "line", "CSV"),
    "cyrillic.csv": ("a,b\n1,вопросы\n".encode("cp1251"), "line 2", "UTF-8"),
    "cut.jsonl.gz": (gzip.compress(b'{"a": 1}\n' * 99)[:30], "cut.jsonl.gz", "cut off"),
    "not.jsonl.gz": (b"plain", "not.jsonl.gz", "broken"),
    "not.parquet": (b"PAR1 no", "not.parquet", "not a whole parquet"),
    "not.feather": (b"no", "not.feather", "not a whole feather"),
    "deep.jsonl": (b"[" * 100000 + b"\n", "line 1", "nested|not JSON"),
    "what.pdf": (b"no", "what.pdf", "cannot be read"),
    "sheet.xlsx": (b"PK\x03\x04", "sheet.xlsx", "cannot be read"),
    "sheet.csv": (b"PK\x03\x04" + bytes(range(256)), "sheet.csv", "workbook"),
    "wide.csv": ("a,b\n1,2\n".encode("utf-32"), "wide.csv", "UTF-8"),
    "old.csv": (b"\xd0\xcf\x11\xe0\xa1", "old.csv", "workbook"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_file_is_one_error_with_place_and_fix(name: str) -> None:
    body, place, message = BROKEN[name]
    Path(name).write_bytes(body)
    with pytest.raises(DataError, match=message) as caught:
        list(read_file(Path(name), name))
    assert place in caught.value.place
    assert caught.value.fix


TABLE = "Frage,Antwort\r\n" + "".join(f"Wie groß ist {k}?,{k} m – für Öl\r\n" for k in range(3))


@pytest.mark.parametrize(
    "body",
    [
        TABLE.encode("utf-16"),
        TABLE.replace(",", "\t").encode("utf-16"),  # Excel's "Unicode text"
        b"\xfe\xff" + TABLE.encode("utf-16-be"),
        b"sep=;\r\n" + TABLE.replace(",", ";").encode(),
        b"\xef\xbb\xbfsep=,\r\n" + TABLE.encode(),
    ],
)
def test_a_table_as_spreadsheets_save_it_is_read(body: bytes) -> None:
    from nbtune.data.sources.files import read_head

    Path("table.csv").write_bytes(body)
    for rows in (read_file(Path("table.csv"), "table.csv"), read_head(Path("table.csv"), "table.csv", 3)):
        assert rows is not None
        assert list(rows)[2] == {"Frage": "Wie groß ist 2?", "Antwort": "2 m – für Öl"}


def test_what_to_do_with_a_workbook_is_said() -> None:
    for name, body in (("sheet.xlsx", b"PK"), ("sheet.csv", b"PK\x03\x04")):
        Path(name).write_bytes(body)
        with pytest.raises(DataError) as caught:
            list(read_file(Path(name), name))
        assert "CSV UTF-8" in caught.value.fix


def test_snapshot_of_variables_needs_no_notebook() -> None:
    import pandas

    stamped = pandas.DataFrame({"text": ["a", "b"], "when": pandas.to_datetime(["2026-01-01", "2026-01-02"])})
    odd = [{"text": "a", "n": float("nan"), "p": Path("x"), "u": "\ud800"}]
    sources = resolve(
        [SourceSpec(source="ROWS", weight=2.0), SourceSpec(source="stamped"), SourceSpec(source="odd")],
        {"ROWS": ROWS, "stamped": stamped, "odd": odd},
    )
    snapshot(sources, Path("run/data"))
    again = open_snapshot(Path("run/data"))
    assert [source.name for source in again] == ["ROWS", "stamped", "odd"]
    assert list(again[0].rows) == ROWS
    assert again[0].spec.weight == 2.0
    assert again[1].rows[1]["text"] == "b"
    assert again[2].rows[0] == {"text": "a", "n": None, "p": "x", "u": "\ud800"}


def test_snapshot_of_files_notices_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("rows.jsonl", ROWS)
    sources = resolve([SourceSpec(source="rows.jsonl")]) + resolve([SourceSpec(source="rows.jsonl")], role="eval")
    snapshot(sources, Path("runs/a/data"))
    assert str(tmp_path) not in Path("runs/a/data/sources.json").read_text()
    monkeypatch.chdir(tmp_path.parent)
    again = open_snapshot(tmp_path / "runs/a/data")
    assert [source.role for source in again] == ["train", "eval"]
    assert list(again[0].rows) == ROWS
    file = tmp_path / "rows.jsonl"
    file.write_text(file.read_text().replace("c1", "d1"))
    with pytest.raises(DataError, match="changed"):
        open_snapshot(tmp_path / "runs/a/data")
    file.unlink()
    with pytest.raises(DataError, match="gone"):
        open_snapshot(tmp_path / "runs/a/data")
    with pytest.raises(DataError, match="no snapshot"):
        open_snapshot(tmp_path / "nowhere")


def test_a_value_that_cannot_be_written_down_is_named() -> None:
    with pytest.raises(DataError, match="cannot be written") as caught:
        snapshot(resolve([SourceSpec(source="r")], {"r": [{"a": 1}, {"a": object()}]}), Path("run"))
    assert caught.value.place == "r, row 1"


@pytest.mark.parametrize("kind", ["csv", "pandas", "arrow", "parquet"])
def test_two_columns_of_one_name_are_refused_for_only_one_would_be_read(kind: str) -> None:
    import pandas
    import pyarrow
    import pyarrow.parquet

    names = ["prompt", "completion", "completion"]
    Path("twins.csv").write_text("prompt,completion,completion\na,b,c\n", encoding="utf-8")
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=names)
    pyarrow.parquet.write_table(table, "twins.parquet")
    given: Any = {"pandas": pandas.DataFrame([["a", "b", "c"]], columns=names), "arrow": table}.get(kind)
    with pytest.raises(DataError, match="several of its columns are called 'completion'"):
        list(read_file(Path(f"twins.{kind}"), "f") if given is None else rows_of(given, "f"))
    Path("blank.csv").write_text("prompt,completion,,\na,b,,\n", encoding="utf-8")  # as spreadsheets write it
    assert next(iter(read_file(Path("blank.csv"), "f")))["completion"] == "b"


def test_frames_whose_columns_arrow_has_otherwise_are_read_as_they_are_shown() -> None:
    import pandas

    months = pandas.Series([*pandas.period_range("2020-03", periods=2, freq="M"), pandas.NaT], dtype="period[M]")
    assert [row["m"] for row in rows_of(pandas.DataFrame({"m": months}), "f")] == ["2020-03", "2020-04", None]
    sparse = pandas.DataFrame({"n": pandas.arrays.SparseArray([0, 0, 2])})
    assert [row["n"] for row in rows_of(sparse, "f")] == [0, 0, 2]
    assert [row["n"] for row in rows_of(pandas.DataFrame({"n": [2**70, 1]}), "f")] == [2**70, 1]
