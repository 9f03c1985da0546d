"""Values of variables as rows: lists, dicts of columns, and the frames, tables and datasets of other libraries.

A library is told by the name of a value's type, so none is imported to find out.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nbtune.data.sources.rows import ArrowRows, ListRows, Rows, refuse_twins
from nbtune.errors import DataError


def is_table(value: Any) -> bool:
    """Return whether a value is a library's frame, table or dataset (nothing is imported to find out)."""
    return _kind(value) in _CONVERTERS


def _kind(value: Any) -> str:
    """Return the name of a value's type, behind that of its library."""
    return f"{type(value).__module__.split('.')[0]}.{type(value).__name__}"


def is_stream(value: Any) -> bool:
    """Return whether a value gives rows one by one: an `IterableDataset`, a generator or another iterator, or a
    function with `yield` that wants no arguments."""
    if _kind(value) == "datasets.IterableDataset":
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
    return isinstance(value, Mapping) and bool(value) and all(map(_is_column, value.values()))


def _is_column(value: Any) -> bool:
    """Return whether a value holds one value a row: a list, a tuple, an array, a series."""
    if isinstance(value, list | tuple):
        return True
    if is_table(value) or is_stream(value):
        return False
    return (hasattr(value, "tolist") or hasattr(value, "to_list")) and getattr(value, "ndim", 1) == 1


def _listed(column: Any) -> list[Any] | tuple[Any, ...]:
    if isinstance(column, list | tuple):
        return column
    return list(column.tolist() if hasattr(column, "tolist") else column.to_list())


def rows_of(value: Any, name: str) -> Rows:
    """Return the rows of a variable: list of dicts or strings, dict of columns, pandas or polars frame (an index that
    has a name is a column), pyarrow table, `datasets.Dataset`.

    Raises:
        DataError: it is something else.
    """
    kind = _kind(value)
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
    kind = _kind(value)
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
    columns = map(_listed, value.values())
    return ListRows([dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)], name)


def _from_pandas(frame: Any, name: str) -> Rows:
    import pyarrow

    named = [level for level in frame.index.names if level is not None and level not in frame.columns]
    frame = (frame.reset_index(level=named) if named else frame).rename(columns=str)
    refuse_twins(list(frame.columns), name)
    for column, kind in frame.dtypes.items():
        if str(kind).startswith("period"):  # Arrow has a period's number: 2020-03 would be 602
            frame = frame.assign(**{str(column): frame[column].astype(object).map(str, na_action="ignore")})
    try:
        return ArrowRows(pyarrow.Table.from_pandas(frame, preserve_index=False), name)
    except (pyarrow.ArrowException, TypeError, OverflowError):  # columns of mixed types, sparse ones, huge numbers
        records = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return ListRows(records, name)


def _from_dataset(dataset: Any, name: str) -> Rows:
    table = dataset.with_format("arrow")[:] if dataset._indices is not None else dataset.data.table
    return ArrowRows(_with_names(table, dataset.features), name)


def _with_names(table: Any, features: Mapping[str, Any]) -> Any:
    """Return a table with the names of labels in place of their numbers, also in lists, where a set has them."""
    import pyarrow

    for number, column in enumerate(table.column_names):
        feature = features.get(column)
        inner = getattr(feature, "feature", feature)
        names = getattr(inner, "names", None) if type(inner).__name__ == "ClassLabel" else None
        if names:
            words = pyarrow.array(names, pyarrow.string())
            parts = [_named(chunk, words) for chunk in table.column(number).chunks]
            kind = parts[0].type if parts else table.schema.field(number).type
            table = table.set_column(number, column, pyarrow.chunked_array(parts, kind))
    return table


def _named(numbers: Any, words: Any) -> Any:
    """Return the words of numbers, or of lists of them; of those that stand for none, as -1, nothing."""
    from pyarrow import compute, types

    if any(is_kind(numbers.type) for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list)):
        inner = _named(numbers.flatten(), words)
        lengths = compute.fill_null(compute.list_value_length(numbers), 0).to_numpy(zero_copy_only=False)
        ends = lengths.cumsum()
        offsets = [None if null else int(end - size) for null, end, size in zip(
            compute.is_null(numbers).to_pylist(), ends, lengths, strict=True
        )]  # fmt: skip
        import pyarrow

        return pyarrow.ListArray.from_arrays(pyarrow.array([*offsets, len(inner)], pyarrow.int32()), inner)
    known = compute.and_(compute.greater_equal(numbers, 0), compute.less(numbers, len(words)))
    return words.take(compute.if_else(known, numbers, None))


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
