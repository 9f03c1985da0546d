"""A file of rows that was dropped into a panel, or chosen there: kept in the working folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nbtune.atomic_io import create_file
from nbtune.data.sources.files import ending, kinds_to_give
from nbtune.errors import SpecError

LIMIT = 200 * 2**20
READ_AS = "not UTF-8: read as Windows-1252, as Excel saves a CSV; see that its letters are right"
_PLAIN = (".csv", ".tsv", ".txt", ".md")
_WESTERN = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœ"
_MARKS = "„“”‚‘’–—…•·‹›«»€£§°²³½¼¾×±µ´©®™¡¿ªº\xa0\xad"
_MANGLED = re.compile(f"[A-Za-z{_WESTERN}][„“”‚]+[A-Za-z]|[{_WESTERN}]{{4}}")
_recoded: set[str] = set()  # names of files that this process wrote anew


def keep(name: str, buffers: Sequence[Any]) -> str:
    """Write it (never over another one); return its name.

    Raises:
        SpecError: it is no file of rows, or too big for the page's channel.
    """
    data, path = buffers[0], Path(Path(name).name)
    end = len(ending(path))
    if not end:
        raise SpecError(f"{path.name} is no file of rows", fix=kinds_to_give(path))
    if len(data) > LIMIT:
        raise SpecError("the file is too big to be sent through the page", fix="copy it to the machine")
    number, stem, kind = 1, path.name[:-end], path.name[-end:]
    western = _western(bytes(data)) if kind.lower() in _PLAIN else None
    data = data if western is None else western.encode()
    while path.exists() or not create_file(path, data):
        number, path = number + 1, Path(f"{stem}-{number + 1}{kind}")
    if western is not None:
        _recoded.add(path.name)
    return path.name


def remarks(names: Iterable[str]) -> list[str]:
    """Return what is to be said of files among these: that one is kept otherwise than it came."""
    return [f"{name}: {READ_AS}" for name in names if name in _recoded]


def _western(data: bytes) -> str | None:
    """Return a text of Windows-1252, which Excel writes in the west of Europe; None where it is UTF-8, or may be else:
    other code pages give letters that no western language has, or many in a row."""
    try:
        if b"\0" not in data:  # else UTF-16, which is read as it is, or no text
            data.decode()
        return None
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    odd = {letter for letter in set(text) if not letter.isascii()} - {*_WESTERN, *_MARKS}
    return None if odd or _MANGLED.search(text) else text
