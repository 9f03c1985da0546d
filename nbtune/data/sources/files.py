"""Reading rows from files: jsonl, json, csv, tsv, parquet, arrow, txt, md; also compressed (.gz .bz2 .xz .zst).

jsonl is indexed by line and parsed when a row is asked for; parquet is memory-mapped. Every mistake in a file is one
`DataError` with the file, the line and what to do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbtune.data.sources.compression import COMPRESSIONS, errors_of, first_bytes, unpack
from nbtune.data.sources.encodings import decode, is_utf_16
from nbtune.data.sources.json_slips import is_web_page
from nbtune.data.sources.parquet_bomb import refuse_bomb
from nbtune.data.sources.rows import (
    ArrowRows,
    ChainRows,
    LineRows,
    ListRows,
    Pages,
    Row,
    Rows,
    parse_json,
    refuse_twins,
)
from nbtune.data.sources.variables import is_rows, rows_of
from nbtune.device.limits import ram_total
from nbtune.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt", ".md")
_SHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_SAVE_SHEET = "save its sheet as CSV (Excel: CSV UTF-8), and give that file"
_BY_HAND = {
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".pdf", ".epub", ".html", ".htm"), "save its text as .txt"),
    **dict.fromkeys((".zip", ".tar", ".7z", ".rar"), "unpack it, and name the file or the folder"),
    **dict.fromkeys((".yaml", ".yml", ".xml", ".toml"), "write its rows as .jsonl, an object a line"),
}
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # what an .xlsx and an .xls begin with
_UNDER = (  # what tools write a list of rows under
    "data", "rows", "train", "examples", "instances", "items", "records", "entries", "results", "samples",
    "conversations", "dialogs", "chats",
)  # fmt: skip
_OF_MEMORY = 4  # what is read whole takes some times its size
_HEAD = 4 << 20  # bytes in which the first rows are looked for


def read_files(files: Sequence[Path], name: str) -> Rows:
    """Return the rows of files, in their order."""
    if len(files) == 1:
        return read_file(files[0], name)
    return ChainRows([read_file(file, file.name) for file in files])


def _endings(file: Path) -> tuple[str, str]:
    """Return (suffix, suffix of its packing) of a file, whatever they are."""
    suffixes = [s.lower() for s in file.suffixes]
    packed = suffixes[-1] if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-2] if packed and len(suffixes) > 1 else (suffixes[-1] if suffixes else "")), packed


def ending(file: Path) -> str:
    """Return by what a file of rows is known, such as ``.csv.gz``; "" where it is none."""
    suffix, packed = _endings(file)
    return suffix + packed if suffix in SUFFIXES else ""


def kinds_to_give(file: Path) -> str:
    """Return what to give in place of a file that is none of rows."""
    if _endings(file)[0] in _SHEETS:
        return _SAVE_SHEET
    if how := _BY_HAND.get(_endings(file)[0]):
        return how
    return f"give one of {', '.join(SUFFIXES)}, also with {', '.join(COMPRESSIONS)}"


def _kind(file: Path, name: str) -> tuple[str, str]:
    """Return (suffix, suffix of its packing) of a file of rows."""
    suffix, packed = _endings(file)
    if suffix not in SUFFIXES:
        cause = f"files that end in `{suffix}` cannot be read" if suffix else "its name has no ending, such as .jsonl"
        raise DataError(cause, place=name, fix=kinds_to_give(file))
    return suffix, packed


def _check_regular(file: Path, name: str) -> None:
    if file.exists() and not file.is_file():
        raise DataError(
            "it is a pipe, a device or a folder", place=name, fix="give an ordinary file, or copy it into one"
        )


def read_file(file: Path, name: str) -> Rows:
    """Return the rows of one file.

    Raises:
        DataError: it is missing, of an unknown kind, or broken; with the line where it is.
    """
    suffix, packed = _kind(file, name)
    _check_regular(file, name)
    try:
        if suffix in (".parquet", ".arrow", ".feather"):
            return _read_table(file, suffix, packed, name)
        data = unpack(file, packed, name) if packed else _map(file, lines=suffix in (".jsonl", ".ndjson"))
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror or error}", place=name, fix="check the path") from error
    if suffix in (".jsonl", ".ndjson"):
        return LineRows(data, name)
    if suffix == ".json":
        return _read_json(data, name)
    return _read_plain(bytes(data), suffix, name)


def read_head(file: Path, name: str, count: int) -> Rows | None:
    """Return the first `count` rows (or some more), from the first megabytes of a file; None where they do not show
    them.

    Raises:
        DataError: as `read_file`, where it shows in these rows.
    """
    suffix, packed = _kind(file, name)
    _check_regular(file, name)
    if suffix in (".parquet", ".arrow", ".feather"):
        return None if packed else _head_of_table(file, suffix, name, count)
    damage: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, *errors_of(packed))
    try:
        data = first_bytes(file, packed, _HEAD + 1)
    except damage:  # what is wrong is said by those who read all of it
        return None
    if len(data) > _HEAD:
        if suffix == ".json" or b"\n" not in data or is_utf_16(data):
            return None
        data = data[: data.rindex(b"\n") + 1]
    if suffix in (".jsonl", ".ndjson"):
        return LineRows(data, name)
    if suffix == ".json":
        return _read_json(data, name)
    return _read_plain(data, suffix, name, count)


def _head_of_table(file: Path, suffix: str, name: str, count: int) -> Rows:
    import pyarrow.parquet

    if suffix != ".parquet":  # memory-mapped: nothing is read but what is asked for
        return ListRows(read_file(file, name).table.slice(0, count).to_pylist(), name)  # type: ignore[attr-defined]
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            return ListRows(next((batch.to_pylist() for batch in table.iter_batches(count)), []), name)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"it is not a whole parquet file: {reason}", place=name, fix="write or copy it again") from None


def _map(file: Path, *, lines: bool) -> Any:
    """Return the bytes of a file, left on the disk if it is big; `lines`: they are asked for line by line."""
    if file.stat().st_size < 1 << 20:
        return file.read_bytes()
    if lines and hasattr(os, "pread"):
        return Pages(file)
    if not lines and file.stat().st_size > ram_total() // _OF_MEMORY:
        cause = f"it has {file.stat().st_size:,} bytes, and this kind of file is read whole"
        raise DataError(cause, place=file.name, fix="write its rows as .jsonl or .parquet")
    import mmap

    with file.open("rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _read_plain(data: bytes, suffix: str, name: str, at_most: int | None = None) -> ListRows:
    """Return the rows of a CSV, or a text as one row, with a remark where its letters are a guess."""
    if data[:4] in _WORKBOOKS:
        raise DataError("it is a workbook or an archive, whatever it is called", place=name, fix=_SAVE_SHEET)
    if is_web_page(data):
        fix = "fetch the file itself: of a repository its raw form, of a page its text"
        raise DataError("it is a page of the web (HTML)", place=name, fix=fix)
    try:
        text, remark = decode(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"it is not UTF-8 (byte 0x{data[error.start]:02x})",
            place=f"{name}, line {line}",
            fix="save it as UTF-8 (Excel: CSV UTF-8)",
        ) from None
    table = suffix in (".csv", ".tsv")
    rows = _read_csv(text, suffix, name, at_most) if table else ListRows([{"text": text}] * bool(text.strip()), name)
    rows.remarks = [f"{name}: {remark}"] if remark else []
    return rows


def _is_talk(rows: list[Any]) -> bool:
    """Return whether these are the messages of one conversation, which is a row."""
    return bool(rows) and all(isinstance(row, dict) and not {"role", "from"}.isdisjoint(row) for row in rows)


def _read_json(data: Any, name: str) -> Rows:
    raw = bytes(data)
    if not raw.strip():
        return ListRows([], name)
    try:
        value = parse_json(raw, lambda: name)
    except DataError as error:
        lines = LineRows(raw, name)  # jsonl under the name .json is common
        if len(lines) > 1 and raw.lstrip()[:1] == b"{":
            try:
                lines[0]
            except DataError:
                raise error from None
            return lines
        raise
    if isinstance(value, dict):
        for key in _UNDER:
            if isinstance(value.get(key), list) and not _is_talk(value[key]):
                value = value[key]
                break
        else:
            columns = is_rows(value) and not any(
                isinstance(v, list) and v and isinstance(v[0], dict) for v in value.values()
            )
            return rows_of(value, name) if columns else ListRows([value], name)
    if not isinstance(value, list):
        held = "null" if value is None else "one value"
        raise DataError(f"it holds {held}, not a list of rows", place=name, fix="write [ {…}, {…} ]")
    return ListRows(value, name)


def _read_csv(text: str, suffix: str, name: str, at_most: int | None = None) -> ListRows:
    import csv
    import io

    csv.field_size_limit(1 << 30)
    head = text[:65536]
    delimiter = "\t" if suffix == ".tsv" else _delimiter(head)
    told = head[:4].lower() == "sep=" and head[5:6] in ("\n", "\r")  # how Excel is told, and no row
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=head[4] if told else delimiter, strict=True)
    rows: list[Row] = []
    lines: list[int] = []
    try:
        if told:
            next(reader)
        header = next(reader, None)
        if header is None:
            return ListRows([], name)
        refuse_twins(header, name)
        for cells in reader:
            if len(rows) == at_most:
                break
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{len(cells)} cells, but the header has {len(header)} columns ({', '.join(header)})",
                    place=f"{name}, line {reader.line_num}",
                    fix='put quotes around cells that contain the delimiter or a line break: "a, b"',
                )
            rows.append(dict(zip(header, cells, strict=True)))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"this is not CSV: {error}",
            place=f"{name}, line {reader.line_num}",
            fix="check the quotes: each that opens a cell closes it, and one inside is written twice",
        ) from None
    return ListRows(rows, name, lines)


def _delimiter(head: str) -> str:
    first = head.split("\n", 1)[0]
    return max(",;\t|", key=lambda d: (first.count(d), d == ","))


def _read_table(file: Path, suffix: str, packed: str, name: str) -> Rows:
    import pyarrow
    import pyarrow.parquet

    source: Any = pyarrow.BufferReader(unpack(file, packed, name)) if packed else str(file)
    try:
        if suffix == ".parquet":
            refuse_twins(pyarrow.parquet.read_schema(source).names, name)
            if not packed:
                refuse_bomb(file, name)
            return ArrowRows(pyarrow.parquet.read_table(source, memory_map=not packed), name)
        mapped = source if packed else pyarrow.memory_map(source)
        try:
            return ArrowRows(pyarrow.ipc.open_file(mapped).read_all(), name)
        except pyarrow.ArrowInvalid:  # the stream form, which datasets writes
            mapped = pyarrow.BufferReader(unpack(file, packed, name)) if packed else pyarrow.memory_map(source)
            return ArrowRows(pyarrow.ipc.open_stream(mapped).read_all(), name)
    except pyarrow.ArrowException as error:
        reason = str(error).split("\n")[0]
        raise DataError(
            f"it is not a whole {suffix[1:]} file: {reason}", place=name, fix="write or copy it again"
        ) from None
