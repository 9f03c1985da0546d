"""A file of rows that was dropped into a panel, or chosen there: kept in the working folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from nbtune.atomic_io import create_file
from nbtune.data.sources.files import ending, kinds_to_give
from nbtune.errors import SpecError

LIMIT = 200 * 2**20
_LONGEST = 200  # bytes of a name: file systems take 255
_MEANT = set(':*?[]|<>"')  # what a source's name, or a pattern of files, is written with


def keep(name: str, buffers: Sequence[Any]) -> str:
    """Write it (never over another one); return its name.

    Raises:
        SpecError: it is no file of rows, or too big for the page's channel.
    """
    data, path = buffers[0], Path(_plain(name))
    end = len(ending(path))
    if not end:
        raise SpecError(f"{path.name} is no file of rows", fix=kinds_to_give(path))
    if len(data) > LIMIT:
        raise SpecError("the file is too big to be sent through the page", fix="copy it to the machine")
    number, stem, kind = 1, path.name[:-end], path.name[-end:]
    while path.exists() or not create_file(path, data):
        number, path = number + 1, Path(f"{stem}-{number + 1}{kind}")
    return path.name


def _plain(name: str) -> str:
    """Return the name of the file alone, as `data:` may say it: of a length that a disk takes, without what would be
    read as something else than a name."""
    last = "".join("-" if c in _MEANT or not c.isprintable() else c for c in PureWindowsPath(name).name)
    end = ending(Path(last))
    stem = last[: len(last) - len(end)].encode(errors="replace")[:_LONGEST].decode(errors="ignore")
    return stem + last[len(last) - len(end) :]
