"""Files that are dropped into a panel: kept, and read as they were meant, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbtune.errors import DataError
from nbtune.widgets.form_errors import described
from nbtune.widgets.uploads import keep, remarks

_GERMAN = "Frage;Antwort\r\nKostet das „Grüne“ 3,90 € in Größe 38?;Ja – für Österreich\xa05 € mehr.\r\n"


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        (_GERMAN, "cp1252", True),
        ("question,answer\nOù est « l'œuvre » ?,À côté de la forêt…\n", "cp1252", True),
        (_GERMAN, "utf-8", False),
        (_GERMAN, "utf-16", False),
        ("Frage;Antwort\nWo ist die Größe?;Unten für Öl.\n", "cp850", False),
        ("Frage;Antwort\nWo ist die Größe?;Unten für Öl.\n", "mac_roman", False),
        ("вопрос;ответ\nГде заказ?;Он в пути.\n", "cp1251", False),
        ("pytanie;odpowiedź\nGdzie są moje książki?;Już jadą.\n", "cp1250", False),
        ("otázka;odpověď\nKde je můj balíček?;Už je na cestě.\n", "cp1250", False),
        ("ερώτηση;απάντηση\nΠού είναι;Στο δρόμο.\n", "cp1253", False),
        ("質問;回答\n注文はどこ?;配送中です。\n", "shift_jis", False),
        ("soru;cevap\nSiparişim nerede kaldı?;Yolda değil.\n", "cp1254", False),
    ],
)
def test_a_csv_as_excel_saves_it_is_kept_as_utf_8_and_that_is_said(tmp_path, monkeypatch, text, encoding, said):
    monkeypatch.chdir(tmp_path)
    data = text.encode(encoding)
    kept = keep(f"{encoding}-{len(data)}.csv", [memoryview(data)])
    assert Path(kept).read_bytes() == (text.encode() if said else data)
    assert [kept in remark for remark in remarks([kept])] == [True] * said


def test_who_clicks_is_told_a_line_of_the_file_and_none_of_a_yaml():
    error = DataError("it is cut", place="line 2 of the YAML (kunden.csv, line 7)", fix="copy it again")
    assert described(error, {}, {})["place"] == "kunden.csv, line 7"
