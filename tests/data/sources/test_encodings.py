"""A CSV as Excel saves it in the west of Europe is read where it lies, and that is said; other code pages are not."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import nbtune
from nbtune import events
from nbtune.data.sources.encodings import decode
from nbtune.errors import DataError
from nbtune.widgets.row_inspection import Inspection

_GERMAN = "Frage;Antwort\r\nKostet das „Grüne“ 3,90 € in Größe 38?;Ja – für Österreich\xa05 € mehr.\r\n"
_FRENCH = "question,answer\nOù est « l'œuvre » ?,À côté de la forêt…\n"


def _spec(name: str, column: str) -> dict[str, object]:
    first, second = column.split(",")
    return {"data": {"source": name, "columns": {"prompt": first, "completion": second}}, "steps": 1, "device": "cpu"}


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        (_GERMAN, "cp1252", True),
        (_FRENCH, "cp1252", True),
        (_GERMAN, "utf-8", False),
        (_GERMAN, "utf-16", False),
        (_GERMAN, "utf-8-sig", False),
    ],
)
def test_a_run_reads_it_and_says_how(tmp_path, monkeypatch, text, encoding, said):
    monkeypatch.chdir(tmp_path)
    data = text.encode(encoding)
    Path("kunden.csv").write_bytes(data)
    spec = _spec("kunden.csv", "Frage,Antwort" if text == _GERMAN else "question,answer")
    run = nbtune.finetune(spec, runs_dir=tmp_path / "runs").wait()
    warnings = [event.message for event in run.events() if isinstance(event, events.Warning)]
    assert ["kunden.csv: not UTF-8: read as Windows-1252" in each for each in warnings].count(True) == said
    assert Path("kunden.csv").read_bytes() == data
    rows = nbtune.data.resolve(nbtune.spec.from_mapping(spec).data)[0].rows
    assert list(rows[0].values()) == text.splitlines()[1].split(";" if text == _GERMAN else ",")


def test_the_inspector_says_it_of_each_file_also_packed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv.gz").write_bytes(gzip.compress(_FRENCH.encode("cp1252")))
    Path("b.csv").write_bytes(_FRENCH.encode())
    Path("c.csv").write_bytes(_FRENCH.encode("cp1252"))
    spec = nbtune.spec.from_mapping(_spec("*.csv*", "question,answer"))
    findings = [each["text"] for each in Inspection(spec, {}).summary()["findings"]]
    assert [text.partition(":")[0] for text in findings if "Windows-1252" in text] == ["a.csv.gz", "c.csv"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Frage;Antwort\nWo ist die Größe?;Unten für Öl.\n", "cp850"),
        ("Frage;Antwort\nWo ist die Größe?;Unten für Öl.\n", "mac_roman"),
        ("вопрос;ответ\nГде заказ?;Он в пути.\n", "cp1251"),
        ("pytanie;odpowiedź\nGdzie są moje książki?;Już jadą.\n", "cp1250"),
        ("otázka;odpověď\nKde je můj balíček?;Už je na cestě.\n", "cp1250"),
        ("ερώτηση;απάντηση\nΠού είναι;Στο δρόμο.\n", "cp1253"),
        ("質問;回答\n注文はどこ?;配送中です。\n", "shift_jis"),
        ("pytanie;odpowiedź\nCo?;Było mi miło.\n", "iso8859_2"),
        ("question,answer\nOù ?,l'œuvre\n", "iso8859_15"),
        ("klausimas;atsakymas\nKur užsakymas?;Ten.\n", "iso8859_13"),
        ("pytanje;odgovor\nGdje je narudžba?;Ondje.\n", "iso8859_10"),
        ("otázka;odpověď\nKde je môj balík?;Ešte.\n", "mac_latin2"),
        ("soru;cevap\nSiparişim nerede kaldı?;Yolda değil.\n", "cp1254"),
    ],
)
def test_other_code_pages_are_refused(tmp_path, monkeypatch, text, encoding):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match="it is not UTF-8"):
        nbtune.finetune(_spec("rows.csv", text.splitlines()[0].replace(";", ",")))


@pytest.mark.parametrize("text", ["question,answer\nl'été,à côté\n", "Frage,Antwort\nfür,über üben\n"])
def test_utf_8_that_was_cut_within_a_letter_is_not_taken_for_another_code_page(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    whole = text.encode()
    at = max(i for i, byte in enumerate(whole) if byte >= 0x80)  # the second byte of its last letter
    Path("rows.csv").write_bytes(whole[:at] + whole[at + 1 :])
    with pytest.raises(DataError, match="it is not UTF-8"):
        nbtune.finetune(_spec("rows.csv", text.splitlines()[0]))


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("był dom", "iso8859_2", "`by³`"),
        ("moj čaj", "cp1250", "`èaj`"),
        ("hol van, őszintén", "cp1250", "`õszintén`"),
        ("cœur à l'œuvre", "cp1252", "`cœur`, `à`, `œuvre`"),
    ],
)
def test_words_that_may_be_others_are_shown(text, encoding, shown):
    _, said = decode(text.encode(encoding))
    assert "read as Windows-1252" in said
    assert f"other code pages have other letters in words such as {shown}" in said


@pytest.mark.parametrize(
    "text", ["Größe für Österreich – „schön“", "mañana", "Straße 5 € m²: 20°C, 5µl, ½kg, ±5, Word®, Zoë’s"]
)
def test_what_is_surely_western_is_read_right(text):
    assert decode(text.encode("cp1252"))[0] == text


def test_letters_that_other_code_pages_have_too_are_not_doubted():
    assert decode("Größe für Österreich – „schön“".encode("cp1252"))[1].endswith(
        "Excel saves a CSV; see that its letters are right"
    )


def test_a_word_of_the_file_is_shown_harmless_and_short():
    said = decode(("été" * 1 + "\x1b[31m" + "ñandù" * 50).encode("cp1252"))[1]
    assert "\x1b" not in said
    assert len(said) < 300


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text", ["a;b\nBył dom;tak\n", "a;b\nГде заказ?;Он в пути.\n", "a;b\n注文はどこ?;配送中です。 いい\n"]
)
def test_utf_16_without_its_mark_is_read_and_said(text, encoding, tmp_path, monkeypatch):
    assert decode(text.encode(encoding)) == (
        text,
        "UTF-16 without its mark at the beginning: see that its letters are right",
    )
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_bytes(text.encode(encoding))
    spec = nbtune.spec.from_mapping({"data": {"source": "rows.csv", "columns": {"prompt": "a", "completion": "b"}}})
    [source] = nbtune.data.resolve(spec.data)
    assert [*source.rows[0].values()] == text.splitlines()[1].split(";")


@pytest.mark.parametrize(
    "data",
    [
        b"a\0b",
        b"abc\0\0\0\0def",
        b"a text of words,\0and one zero in it",
        b"a text of words \0and one zero in it",
        b"a text of even length,\0one zero in it!",
        b"a text of even length\0one zero in it!!",
        "ab\0cd".encode("utf-16-le"),
        bytes(64),
    ],
)
def test_zeros_alone_are_no_utf_16(data):
    assert decode(data) == (data.decode(), "")
