"""Rows by value: good rows in whatever holds rows, one perhaps odd; and texts of many languages in any code page."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbtune import data
from nbtune.data.sources.by_value import spec_with_named_rows
from nbtune.data.sources.encodings import decode
from tests.fuzz.cases import Case, Silent
from tests.fuzz.meant import check
from tests.fuzz.rows import ASKED, _tokenizer, row
from tests.fuzz.values import odd

TEXTS = (
    "Było mi miło, Łódź", "Kde je můj balíček?", "Hol van? Már úton, őszintén", "Unde este? în drum, și atât",
    "Siparişim nerede kaldı?", "Größe für Österreich", "Où est l'œuvre ?", "Πού είναι", "Где заказ", "narudžba čaj",
    "užsakymas", "Öösel žürii", "¿Dónde está el niño?", "Não está à mão", "Col·lecció", "ħobż", "Missä äiti", "שלום",
    "注文はどこ?", "여기", "5 € – „gut“ … 20°C, m²",
)  # fmt: skip
CODE_PAGES = (
    "cp1252", "iso8859_1", "iso8859_2", "iso8859_3", "iso8859_4", "iso8859_5", "iso8859_7", "iso8859_9", "iso8859_10",
    "iso8859_13", "iso8859_14", "iso8859_15", "iso8859_16", "cp1250", "cp1251", "cp1253", "cp1254", "cp1257", "cp437",
    "cp850", "cp852", "cp858", "mac_roman", "mac_latin2", "mac_croatian", "mac_turkish", "koi8_r", "utf-8", "utf-16",
    "utf-16-le", "utf-16-be", "utf-8-sig", "utf-32", "shift_jis", "euc_kr", "gb18030",
)  # fmt: skip


def make(chance: random.Random, folder: Path) -> Case:
    return _text(chance) if chance.random() < 0.3 else _held(chance)


def _text(chance: random.Random) -> Case:
    """A text in a code page: it is read as it is, refused, or read with a word about it."""
    words = " ".join(chance.choice(TEXTS) for _ in range(chance.choice((1, 1, 2, 5))))
    able = [page for page in CODE_PAGES if _fits(words, page)]
    page = chance.choice(able)
    line = f"a;b\n{words};ok\n"

    def attempt() -> None:
        try:
            text, said = decode(line.encode(page))
        except UnicodeDecodeError:
            return
        if text != line and not said:
            raise Silent(f"read as {text!r}")

    return Case(attempt, f"{page}: {words}")


def _fits(words: str, page: str) -> bool:
    try:
        return words.encode(page).decode(page) == words
    except UnicodeError:
        return False


def _held(chance: random.Random) -> Case:
    kind = chance.choice(("sft", "sft", "pairs", "feedback"))
    marks = [f"mark{k}x{chance.randrange(10**6)}" for k in range(chance.choice((1, 3, 9)))]
    first = row(random.Random(chance.random()), kind, marks[0])
    rows = [first]
    while len(rows) < len(marks):
        more = row(chance, kind, marks[len(rows)])
        if more.keys() == first.keys():
            rows.append(more)
    skip = chance.random() < 0.5
    good = dict(enumerate(marks))
    wrong = chance.random() < 0.3
    if wrong:
        at = chance.randrange(len(rows))
        rows[at] = {**rows[at], chance.choice(list(first)): odd(chance)}
        del good[at]
    name, holder = chance.choice(list(HOLDERS.items()))
    try:
        held = holder(rows)
    except Exception:  # noqa: BLE001 — the library cannot hold them
        name, held = "a list", rows
    told = f"{len(rows)} rows of {list(first)} in {name}, {'one odd, ' * wrong}{'skip' * skip}"

    def attempt() -> None:
        body = {"data": held, "method": ASKED[kind], "eval": {"split": 0}}
        body |= {"on_error": "skip"} if skip else {}
        spec, variables = spec_with_named_rows(body, {}, {}, 1)
        sources = data.resolve(spec.data, variables)
        prepared = data.prepare_data(sources, _tokenizer(), spec=spec, max_len=512, seed=0)
        check(rows, good, prepared, _tokenizer(), excused=False)

    return Case(attempt, f"{told}: {rows!r}"[:900])


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [each[key] for each in rows] for key in rows[0]}


def _pandas(rows: list[dict[str, Any]]) -> Any:
    import pandas

    return pandas.DataFrame(rows)


def _set(rows: list[dict[str, Any]]) -> Any:
    import datasets

    return datasets.Dataset.from_list(rows)


def _arrays(rows: list[dict[str, Any]]) -> Any:
    import numpy

    made = {}
    for key, column in _columns(rows).items():
        made[key] = numpy.empty(len(column), object)
        made[key][:] = column
    return made


def _yielded(rows: list[dict[str, Any]]) -> Callable[[], Iterator[Any]]:
    def all_rows() -> Iterator[Any]:
        yield from rows

    return all_rows


def _read(rows: list[dict[str, Any]]) -> Any:
    """As csv.DictReader gives them: all texts."""
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return csv.DictReader(io.StringIO(file.getvalue())) if all(map(_plain, rows)) else iter(rows)


def _plain(each: dict[str, Any]) -> bool:
    return all(isinstance(value, str) and value.strip() and "\x00" not in value for value in each.values())


def _polars(rows: list[dict[str, Any]]) -> Any:
    import polars

    return polars.DataFrame(rows, strict=False)


HOLDERS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "a list": list,
    "a tuple": tuple,
    "lists of rows": lambda rows: [rows[:1], rows[1:]] if len(rows) > 1 else [rows],
    "a source": lambda rows: {"source": rows, "weight": 2},
    "a list of a source": lambda rows: [{"source": rows, "max_rows": len(rows)}],
    "columns": _columns,
    "columns as tuples": lambda rows: {key: tuple(column) for key, column in _columns(rows).items()},
    "columns of arrays": _arrays,
    "pandas": _pandas,
    "pandas of objects": lambda rows: _pandas(rows).astype(object),
    "pandas, its own types": lambda rows: _pandas(rows).convert_dtypes(),
    "pandas on arrow": lambda rows: _pandas(rows).convert_dtypes(dtype_backend="pyarrow"),
    "pandas, other numbers": lambda rows: _pandas(rows).set_index([[7] * len(rows)]),
    "series": lambda rows: dict(_pandas(rows).items()),
    "polars": _polars,
    "polars, lazy": lambda rows: _polars(rows).lazy(),
    "arrow": lambda rows: _set(rows).data.table,
    "a data set": _set,
    "a data set in another order": lambda rows: _set(rows).shuffle(seed=1),
    "a data set for torch": lambda rows: _set(rows).with_format("torch"),
    "a data set for numpy": lambda rows: _set(rows).with_format("numpy"),
    "a stream": lambda rows: _set(rows).to_iterable_dataset(),
    "a list of a stream": lambda rows: [_set(rows).to_iterable_dataset()],
    "an iterator": iter,
    "a map": lambda rows: map(dict, rows),
    "a generator": lambda rows: _yielded(rows)(),
    "a function with yield": _yielded,
    "a reader": _read,
}
