"""Rows that come one by one (`datasets.IterableDataset`, generators): spooled to disk, then read by line.

What does not fit into memory need not: a spool is a temporary jsonl file, read through a memory map, and gone with the
process. It lies in the cache.
"""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterable
from typing import Any

from nbtune.data.sources.cache_folder import workplace
from nbtune.data.sources.files import read_file
from nbtune.data.sources.json_line import to_json
from nbtune.data.sources.rows import Rows


def rows_of_stream(stream: Iterable[Any], name: str) -> Rows:
    """Return the rows of a stream, in its order.

    Raises:
        DataError: a value cannot be written down.
    """
    spool = workplace()
    file = spool / "rows.jsonl"
    with file.open("w", encoding="utf-8") as handle:
        for index, row in enumerate(stream):
            row = {"text": row} if isinstance(row, str) else row
            handle.write((to_json(row, f"{name}, row {index}") if row else json.dumps(row)) + "\n")
    rows = read_file(file, name)
    weakref.finalize(rows, shutil.rmtree, spool, ignore_errors=True)
    return rows
