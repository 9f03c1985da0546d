"""Sources: where rows lie, and rows as dicts with a number each, whatever holds them.

A `Source` is cheap until `rows` is asked for; rows are read lazily (jsonl by line, parquet by batch), and pandas,
polars, pyarrow and datasets are imported only for sources that need them.
"""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from nbtune.data.sources.row_function import Change, ChangedRows
from nbtune.errors import DataError
from nbtune.folder_format import FORMAT
from nbtune.spec import SourceSpec

Row = dict[str, Any]


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
        version: of the run's folder that the rows were written down in (`nbtune.folder_format`).
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
    version: int = FORMAT

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


class ArrowRows:
    """Rows of a pyarrow table (memory-mapped where the file allows), decoded a batch at a time."""

    BATCH = 512

    def __init__(self, table: Any, name: str) -> None:
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
        self._rows, self._count = rows, count

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


def is_table(value: Any) -> bool:
    """Return whether a value is a library's frame, table or dataset (nothing is imported to find out)."""
    kind = f"{type(value).__module__.split('.')[0]}.{type(value).__name__}"
    return kind in _CONVERTERS


def is_stream(value: Any) -> bool:
    """Return whether a value gives rows one by one: an `IterableDataset`, a generator or another iterator, or a
    function with `yield` that wants no arguments."""
    if type(value).__name__ == "IterableDataset" and type(value).__module__.split(".")[0] == "datasets":
        return True
    if inspect.isgeneratorfunction(value):
        return _wants_nothing(value)
    return isinstance(value, Iterator) and not isinstance(value, io.IOBase)


def _wants_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def is_rows(value: Any) -> bool:
    """Return whether a variable's value can be read as rows, at once or one by one (nothing is imported to find
    out)."""
    if is_table(value) or is_stream(value):
        return True
    if isinstance(value, list | tuple):
        return all(isinstance(row, Mapping | str | list) for row in value[:8])
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, list | tuple) for v in value.values())


def rows_of(value: Any, name: str) -> Rows:
    """Return the rows of a variable: list of dicts or strings, dict of columns, pandas or polars frame, pyarrow table,
    `datasets.Dataset`.

    Raises:
        DataError: it is something else.
    """
    kind = f"{type(value).__module__.split('.')[0]}.{type(value).__name__}"
    if kind in _CONVERTERS:
        return _CONVERTERS[kind](value, name)
    if isinstance(value, Mapping):
        return _from_columns(value, name)
    if isinstance(value, list | tuple):
        return ListRows(value, name)
    raise DataError(
        f"it is a {type(value).__name__}, not rows",
        place=name,
        fix="give a list of dicts, a DataFrame, a datasets.Dataset, or a file's name",
    )


def first_of(value: Any, count: int) -> Any:
    """Return the first `count` rows of a variable's value, as something that holds rows too."""
    kind = f"{type(value).__module__.split('.')[0]}.{type(value).__name__}"
    if kind == "datasets.Dataset":
        return value.select(range(min(count, len(value))))
    if kind in ("pandas.DataFrame", "polars.DataFrame", "polars.LazyFrame"):
        return value.head(count)
    if kind == "pyarrow.Table":
        return value.slice(0, count)
    if isinstance(value, Mapping):
        return value  # columns, whose lengths are compared
    return value[:count]


def _from_columns(value: Mapping[str, Any], name: str) -> Rows:
    lengths = {key: len(column) for key, column in value.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"its columns have different lengths: {lengths}", place=name, fix="give every row every column")
    return ListRows([dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)], name)


def _from_pandas(frame: Any, name: str) -> Rows:
    import pyarrow

    frame = frame.rename(columns=str)
    try:
        return ArrowRows(pyarrow.Table.from_pandas(frame, preserve_index=False), name)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError):  # columns of mixed types
        records = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return ListRows(records, name)


def _from_dataset(dataset: Any, name: str) -> Rows:
    table = dataset.with_format("arrow")[:] if dataset._indices is not None else dataset.data.table
    return ArrowRows(table, name)


def _from_dataset_dict(value: Any, name: str) -> Rows:
    return _from_dataset(split_of(value, "train", name), name)


def split_of(value: Any, split: str, name: str) -> Any:
    """Return the split of a `datasets.DatasetDict`; anything else as it is.

    Raises:
        DataError: there is no such split.
    """
    if type(value).__name__ != "DatasetDict":
        return value
    if split in value:
        return value[split]
    raise DataError(f"there is no split `{split}`", place=name, fix=f"there are {', '.join(map(str, value))} (`split`)")


_CONVERTERS: dict[str, Callable[[Any, str], Rows]] = {
    "pandas.DataFrame": _from_pandas,
    "polars.DataFrame": lambda frame, name: ArrowRows(frame.to_arrow(), name),
    "polars.LazyFrame": lambda frame, name: ArrowRows(frame.collect().to_arrow(), name),
    "pyarrow.Table": ArrowRows,
    "datasets.Dataset": _from_dataset,
    "datasets.DatasetDict": _from_dataset_dict,
}
