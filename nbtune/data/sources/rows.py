"""Sources: where rows lie, and rows as dicts with a number each, whatever holds them.

A `Source` is cheap until `rows` is asked for; rows are read lazily (jsonl by line, parquet by batch), and pandas,
polars, pyarrow and datasets are imported only for sources that need them.
"""

from __future__ import annotations

import json
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from nbtune.data.sources.json_slips import json_slip
from nbtune.data.sources.row_function import Change, ChangedRows
from nbtune.errors import DataError
from nbtune.folder_format import FORMAT
from nbtune.spec import SourceSpec

Row = dict[str, Any]
_LONGEST_ROW = 64 << 20  # bytes; tokenizing takes some fifty times of it
_BLOCK = 1 << 20  # bytes that are searched for line breaks at a time


class Rows(Protocol):
    """Rows in order: `len`, iteration, `[i]`; `place(i)` says where row i lies, for an error message."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Row]: ...
    def __getitem__(self, index: int) -> Row: ...
    def place(self, index: int) -> str: ...


@dataclass(frozen=True)
class Source:
    """One source of rows.

    Args:
        name: what people call it (`rows`, `train.jsonl`, `owner/name`).
        kind: variable, file, set (nbtune's own) or hub.
        spec: what the user wrote about it.
        load: reads the rows.
        files: the files that are read, for a file source.
        role: `train`, or `eval` for rows that are only measured.
        digests: SHA-256 of the files, where it is known already.
        head: the first rows, at least so many where there are, without reading all; None: that cannot be.
        change: a function that makes a row of a row; `change_digest`: of its code, where that is known.
        rewards: functions that judge answers, with their names.
        version: of the run's folder that the rows were written down in (`nbtune.folder_format`).
        arrives: rows are made as they are asked for, and each once.
    """

    name: str
    kind: str
    spec: SourceSpec
    load: Callable[[], Rows] = field(repr=False)
    files: tuple[Path, ...] = ()
    role: str = "train"
    digests: tuple[str, ...] = ()
    head: Callable[[int], Rows | None] = field(default=lambda count: None, repr=False)
    change: Change | None = field(default=None, repr=False)
    change_digest: str = ""
    rewards: tuple[tuple[str, Callable[..., Any]], ...] = field(default=(), repr=False)
    version: int = FORMAT
    arrives: bool = False

    @cached_property
    def rows(self) -> Rows:
        """The rows.

        Raises:
            DataError: the source is empty, or cannot be read.
        """
        rows = self.raw
        if len(rows) == 0:
            raise DataError("there are no rows in it", place=self.name, fix="give at least one row")
        if self.change is not None:
            return ChangedRows(rows, self.change, self.spec.function or "function")
        return rows

    @cached_property
    def raw(self) -> Rows:
        """The rows as they are, before any function: the first `max_rows` of them, where the spec says so."""
        return at_most(self.spec.max_rows, self.load())


class ListRows:
    """Rows of a list of mappings (or of strings: one text each)."""

    def __init__(self, rows: Sequence[Any], name: str, lines: Sequence[int] | None = None) -> None:
        self._rows, self._name, self._lines = rows, name, lines
        self.remarks: list[str] = []  # of how they were read

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return _as_row(self._rows[index], lambda: self.place(index))

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def place(self, index: int) -> str:
        if self._lines is not None:
            return f"{self._name}, line {self._lines[index]}"
        return f"{self._name}, row {index}"


class LineRows:
    """Rows of a jsonl text: where every line begins and ends; a line is read and parsed when it is asked for.

    Args:
        data: the text's bytes, or an open big file (`Pages`).
    """

    def __init__(self, data: Any, name: str) -> None:
        import numpy as np

        self._data, self._name = data, name
        start = 3 if data[:3] == b"\xef\xbb\xbf" else 0  # a byte order mark
        ends = np.append(_line_breaks(data, name), len(data)) if len(data) else np.zeros(0, np.int64)
        starts = np.concatenate([[start], ends[:-1] + 1]) if len(ends) else ends
        short = np.flatnonzero(ends - starts < 3)
        blank = [i for i in short.tolist() if not bytes(data[int(starts[i]) : int(ends[i])]).strip()]
        self._lines = np.delete(np.arange(len(ends)), blank)
        self._starts, self._ends = starts[self._lines], ends[self._lines]

    def longest(self, count: int) -> list[int]:
        """Return the numbers of the rows of most bytes."""
        import numpy as np

        sizes = self._ends - self._starts
        count = min(count, len(sizes))
        return [int(i) for i in np.argpartition(sizes, len(sizes) - count)[len(sizes) - count :]] if count else []

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Row:
        if self._ends[index] - self._starts[index] > _LONGEST_ROW:
            cause = f"the row has more than {_LONGEST_ROW >> 20} MiB"
            raise DataError(cause, place=self.place(index), fix="write one row a line, or make rows of its parts")
        raw = bytes(self._data[int(self._starts[index]) : int(self._ends[index])])
        return _as_row(parse_json(raw, lambda: self.place(index)), lambda: self.place(index))

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def place(self, index: int) -> str:
        return f"{self._name}, line {int(self._lines[index]) + 1}"


class Pages:
    """The bytes of a big file, read where they are asked for: a memory map would count every page as memory."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_RDONLY)
        self._size = file.stat().st_size
        weakref.finalize(self, os.close, self._fd)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        data, missing = os.pread(self._fd, stop - start, start), 1
        while len(data) < stop - start and missing:  # a call reads at most 2 GiB
            more = os.pread(self._fd, stop - start - len(data), start + len(data))
            data, missing = data + more, len(more)
        return data

    def __bytes__(self) -> bytes:
        return self[0 : self._size]

    def into(self, buffer: bytearray, at: int) -> int:
        """Read bytes from `at` on into a buffer; return how many."""
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [buffer], at)
        part = self[at : at + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


def _line_breaks(data: Any, name: str) -> Any:
    """Return where the line breaks are; int64. A megabyte at a time, which stays in the processor's cache."""
    import numpy as np

    buffer, breaks, at, last = bytearray(_BLOCK), [], 0, 0
    view, hits = np.frombuffer(buffer, np.uint8), np.empty(_BLOCK, bool)
    while at < len(data):
        if isinstance(data, Pages):
            count = data.into(buffer, at)
            part = view[:count]
        else:
            count = min(_BLOCK, len(data) - at)
            part = np.frombuffer(data, np.uint8, count, at)
        if not count:
            break  # the file has become shorter
        np.equal(part, 10, out=hits[:count])
        breaks.append(np.flatnonzero(hits[:count]) + at)
        last = int(breaks[-1][-1]) if len(breaks[-1]) else last
        at += count
        if at - last > 16 * _LONGEST_ROW:  # a hole, perhaps
            raise DataError(f"a row has more than {(at - last) >> 20} MiB", place=name, fix="write one row a line")
    return np.concatenate(breaks)


class ChainRows:
    """Rows of several files, one after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts, self._starts = parts, [0]
        self.remarks = [remark for part in parts for remark in getattr(part, "remarks", ())]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part))

    def __len__(self) -> int:
        return self._starts[-1]

    def _find(self, index: int) -> tuple[Rows, int]:
        from bisect import bisect_right

        part = bisect_right(self._starts, index) - 1
        return self._parts[part], index - self._starts[part]

    def longest(self, count: int) -> list[int]:
        """Return the numbers of some rows of most bytes, the first of each file among them."""
        each, parts = -(-count // len(self._parts)), zip(self._parts, self._starts, strict=False)
        return [at + row for part, at in parts if hasattr(part, "longest") for row in part.longest(each)]

    def __getitem__(self, index: int) -> Row:
        part, inner = self._find(index)
        return part[inner]

    def __iter__(self) -> Iterator[Row]:
        for part in self._parts:
            yield from part

    def place(self, index: int) -> str:
        part, inner = self._find(index)
        return part.place(inner)


def refuse_twins(columns: Sequence[str], name: str) -> None:
    """Refuse columns of one name, of which only the last one would be read.

    Raises:
        DataError: with the name.
    """
    twins = [column for column, count in Counter(filter(None, columns)).items() if count > 1]
    if twins:
        raise DataError(f"several of its columns are called {twins[0]!r:.60}", place=name, fix="rename them")


class ArrowRows:
    """Rows of a pyarrow table (memory-mapped where the file allows), decoded a batch at a time."""

    BATCH = 512

    def __init__(self, table: Any, name: str) -> None:
        refuse_twins(table.column_names, name)
        self.table, self.name = table, name
        self._start, self._batch = 0, []  # type: tuple[int, list[Row]]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if not self._start <= index < self._start + len(self._batch):
            self._start = index - index % self.BATCH
            self._batch = self.table.slice(self._start, self.BATCH).to_pylist()
        return self._batch[index - self._start]

    def many(self, indices: Sequence[int]) -> list[Row]:
        """Return the rows of those numbers, in that order, decoded together."""
        if isinstance(indices, range) and indices.step == 1:
            return self.table.slice(indices.start, len(indices)).to_pylist()  # type: ignore[no-any-return]
        return self.table.take(list(indices)).to_pylist()  # type: ignore[no-any-return]

    def longest(self, count: int) -> list[int]:
        """Return the numbers of the rows of most bytes of text."""
        import numpy as np

        sizes = np.zeros(len(self), np.int64)
        for column in self.table.columns:
            sizes += np.concatenate([np.zeros(0, np.int64), *map(_bytes_of, column.chunks)])
        return [int(row) for row in np.argsort(sizes, kind="stable")[::-1][:count]]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), self.BATCH):
            yield from self.table.slice(start, self.BATCH).to_pylist()

    def place(self, index: int) -> str:
        return f"{self.name}, row {index}"


class FirstRows:
    """The first rows of others."""

    def __init__(self, rows: Rows, count: int) -> None:
        self._rows, self._count, self.remarks = rows, count, getattr(rows, "remarks", [])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._rows[index]

    def __iter__(self) -> Iterator[Row]:
        return islice(self._rows, self._count)

    def place(self, index: int) -> str:
        return self._rows.place(index)


def at_most(count: int | None, rows: Rows) -> Rows:
    """Return the first `count` rows, or all."""
    if count is None or len(rows) <= count:
        return rows
    return ArrowRows(rows.table.slice(0, count), rows.name) if isinstance(rows, ArrowRows) else FirstRows(rows, count)


def _bytes_of(array: Any) -> Any:
    """Return the bytes of text in each value of an Arrow array, int64."""
    import numpy as np
    from pyarrow import compute, types

    kind, sizes = array.type, np.zeros(len(array), np.int64)
    if types.is_string(kind) or types.is_large_string(kind):
        return compute.fill_null(compute.binary_length(array), 0).to_numpy(zero_copy_only=False)
    if types.is_struct(kind):
        return sum((_bytes_of(part) for part in array.flatten()), sizes)
    if types.is_list(kind) or types.is_large_list(kind):
        np.add.at(sizes, compute.list_parent_indices(array).to_numpy(), _bytes_of(array.flatten()))
    return sizes


def _as_row(value: Any, place: Callable[[], str]) -> Row:
    if type(value) is dict:
        return value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and value and all(isinstance(m, Mapping) for m in value):
        return {"messages": value}  # a bare conversation
    shown = json.dumps(value, default=repr, ensure_ascii=False)[:60]
    raise DataError(
        f"a row must be a mapping of columns to values, not {type(value).__name__} ({shown})",
        place=place(),
        fix='write rows such as {"prompt": "…", "completion": "…"}',
    )


class _Twice(Exception):
    """A key stands twice in an object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON: Python's own reader keeps the last of equal keys, without a word."""
    body = dict(pairs)
    if len(body) < len(pairs):
        raise _Twice(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return body


def parse_json(raw: bytes, place: Callable[[], str]) -> Any:
    """Read JSON; `place` says where it stands.

    Raises:
        DataError: it is none.
    """
    try:
        return json.loads(raw, object_pairs_hook=_once)
    except _Twice as twice:
        cause = f"the key {twice.args[0]!r:.60} stands twice in one object, and only one of both could be read"
        raise DataError(cause, place=place(), fix="rename one, or leave it out") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"it is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})",
            place=place(),
            fix="save the file as UTF-8",
        ) from None
    except RecursionError:
        raise DataError("it is nested too deeply", place=place(), fix="flatten the row") from None
    except ValueError as error:
        slip, fix = json_slip(raw, error)
        raise DataError(f"this is not JSON: {slip}", place=place(), fix=fix) from None
