"""Files that are dropped into a panel: kept, and read as they were meant, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbtune
from nbtune.errors import DataError
from nbtune.widgets.form_errors import described
from nbtune.widgets.uploads import keep
from tests.support.every import every

_GERMAN = "Frage;Antwort\r\nKostet das „Grüne“ 3,90 € in Größe 38?;Ja – für Österreich\xa05 € mehr.\r\n"


def test_a_file_is_kept_as_it_came_and_never_over_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = _GERMAN.encode("cp1252")
    kept = [keep("kunden.csv", [memoryview(data)]) for _ in range(2)]
    assert kept == ["kunden.csv", "kunden-2.csv"]
    assert every(Path(name).read_bytes() == data for name in kept)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Bob's rows (2) – für Öl.CSV", "Bob's rows (2) – für Öl.CSV"),
        ("../../b.csv", "b.csv"),
        ("C:\\mine\\c.csv.gz", "c.csv.gz"),
        ("file:x.csv", "file-x.csv"),
        ("var:x.csv", "var-x.csv"),
        ("*[a]?.csv", "--a--.csv"),
        ("a\nb\x1b[31m\0\u202e.csv", "a-b--31m--.csv"),
        ("é" * 200 + ".jsonl", "é" * 100 + ".jsonl"),
    ],
)
def test_its_name_is_one_that_data_can_say(tmp_path, monkeypatch, name, kept):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("prompt,completion\nother,rows\n")
    data = b"" if kept.endswith((".gz", ".jsonl")) else b"prompt,completion\nHi,Ahoy!\n"
    assert keep(name, [data]) == kept
    if data:
        [source] = nbtune.data.resolve(nbtune.spec.from_mapping({"data": kept}).data)
        assert [*source.rows] == [{"prompt": "Hi", "completion": "Ahoy!"}]


def test_who_clicks_is_told_a_line_of_the_file_and_none_of_a_yaml():
    error = DataError("it is cut", place="line 2 of the YAML (kunden.csv, line 7)", fix="copy it again")
    assert described(error, {}, {})["place"] == "kunden.csv, line 7"
