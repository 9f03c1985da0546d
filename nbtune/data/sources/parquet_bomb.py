"""Parquet files that hold far more than their size: a text that is written once and meant a million times.

A column's distinct values are stored once (its dictionary), and each row is a number of one; read as a table, each row
has the text. So a file of a megabyte can fill any memory. Read as numbers here, they take what the file takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbtune.data.sources.compression import ALWAYS, TIMES
from nbtune.errors import DataError


def refuse_bomb(file: Path, name: str) -> None:
    """Refuse a file whose rows take over a hundred times its size, before they are read.

    Raises:
        DataError: they do.
    """
    import pyarrow.parquet

    most = max(ALWAYS, TIMES * file.stat().st_size)
    with pyarrow.parquet.ParquetFile(file) as opened:
        groups = [opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups)]
        columns = opened.metadata.num_columns
        if sum(group.total_byte_size + 4 * columns * group.num_rows for group in groups) > most:
            raise _refused(name, most)
        texts = [number for number in range(columns) if opened.metadata.schema.column(number).physical_type == _BYTES]
        if _at_most(groups, texts) <= most:
            return
        paths = [opened.metadata.schema.column(number).path for number in texts]
    taken = 0
    with pyarrow.parquet.ParquetFile(file, read_dictionary=paths) as opened:
        for number in range(len(groups)):
            for path in paths:
                taken += sum(map(_meant, opened.read_row_group(number, columns=[path]).columns))
                if taken > most:
                    raise _refused(name, most)


_BYTES = "BYTE_ARRAY"


def _at_most(groups: list[Any], texts: list[int]) -> int:
    """Return what the texts could take: each value the whole column's bytes."""
    parts = (group.column(number) for group in groups for number in texts)
    return sum(part.num_values * part.total_uncompressed_size for part in parts)


def _meant(column: Any) -> int:
    """Return the bytes of a column's texts, each as often as it is meant."""
    import pyarrow.compute as compute

    taken = 0
    for array in (array for chunk in column.chunks for array in _dictionaries(chunk)):
        sizes = compute.fill_null(compute.binary_length(array.dictionary), 0).cast("int64")
        taken += compute.sum(compute.take(sizes, array.indices)).as_py() or 0
    return taken


def _dictionaries(array: Any) -> Iterator[Any]:
    import pyarrow

    if isinstance(array, pyarrow.DictionaryArray):
        yield array
    elif isinstance(array, pyarrow.StructArray):
        for number in range(array.type.num_fields):
            yield from _dictionaries(array.field(number))
    elif isinstance(array, pyarrow.MapArray):
        yield from _dictionaries(array.keys)
        yield from _dictionaries(array.items)
    elif isinstance(array, pyarrow.ListArray | pyarrow.LargeListArray | pyarrow.FixedSizeListArray):
        yield from _dictionaries(array.values)


def _refused(name: str, most: int) -> DataError:
    return DataError(
        f"its rows take over {TIMES} times its own size ({most >> 20} MiB)",
        place=name,
        fix="write it again without what is not needed, or as .jsonl",
    )
