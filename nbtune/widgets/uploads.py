"""A file of rows that was dropped into a panel, or chosen there: kept in the working folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbtune.atomic_io import create_file
from nbtune.errors import SpecError

LIMIT = 200 * 2**20
_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def keep(name: str, buffers: Sequence[Any]) -> str:
    """Write it (never over another one); return its name.

    Raises:
        SpecError: it is no file of rows, or too big for the page's channel.
    """
    data, path = buffers[0], Path(Path(name).name)
    if path.suffix.lower() not in _KINDS:
        raise SpecError(f"{path.name} is no file of rows", fix="jsonl, json, csv, tsv, parquet or txt")
    if len(data) > LIMIT:
        raise SpecError("the file is too big to be sent through the page", fix="copy it to the machine")
    number = 1
    while path.exists() or not create_file(path, data):
        number, path = number + 1, path.with_stem(f"{Path(name).stem}-{number + 1}")
    return path.name
