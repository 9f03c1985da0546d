"""Files that are dropped into a panel: kept, and read as they were meant, or not at all."""

from __future__ import annotations

from pathlib import Path

from nbtune.errors import DataError
from nbtune.widgets.form_errors import described
from nbtune.widgets.uploads import keep

_GERMAN = "Frage;Antwort\r\nKostet das „Grüne“ 3,90 € in Größe 38?;Ja – für Österreich\xa05 € mehr.\r\n"


def test_a_file_is_kept_as_it_came_and_never_over_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = _GERMAN.encode("cp1252")
    kept = [keep("kunden.csv", [memoryview(data)]) for _ in range(2)]
    assert kept == ["kunden.csv", "kunden-2.csv"]
    assert all(Path(name).read_bytes() == data for name in kept)


def test_who_clicks_is_told_a_line_of_the_file_and_none_of_a_yaml():
    error = DataError("it is cut", place="line 2 of the YAML (kunden.csv, line 7)", fix="copy it again")
    assert described(error, {}, {})["place"] == "kunden.csv, line 7"
