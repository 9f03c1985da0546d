"""Rows at an address: fetched once, read as a file of their ending. The web by Python itself, all else by fsspec."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

from nbtune.data.sources.files import read_files
from nbtune.data.sources.rows import ListRows, Rows
from nbtune.errors import DataError

_WEB = ("http", "https")
_SECONDS = 60  # without a byte


def read_address(address: str) -> Rows:
    """Return the rows that lie at an address.

    Raises:
        DataError: it cannot be fetched, or holds no rows.
    """
    end = Path(unquote(urlsplit(address).path)).name
    try:
        with _open(address) as remote, tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / (end or "rows")
            with local.open("wb") as copy:
                shutil.copyfileobj(remote, copy)
            rows = read_files([local], end or address)
            kept = ListRows(list(rows), end)
            kept.remarks = getattr(rows, "remarks", [])
            return kept
    except ImportError as error:  # fsspec says which package reads such addresses
        raise DataError(
            f"it cannot be fetched: {error}", place=address, fix="install that, or copy the file here"
        ) from error
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", "") or error)
        if isinstance(error, HTTPError):
            error.close()
        raise DataError(f"it cannot be fetched: {reason}", place=address, fix=_fix(address, error)) from error


def _open(address: str) -> AbstractContextManager[Any]:
    if urlsplit(address).scheme.lower() in _WEB:
        from urllib.request import Request, urlopen

        asked = Request(address, headers={"User-Agent": "nbtune"})
        opened: AbstractContextManager[Any] = urlopen(asked, timeout=_SECONDS)
        return opened
    import fsspec

    found: AbstractContextManager[Any] = fsspec.open(address, "rb")
    return found


def _fix(address: str, error: Exception) -> str:
    scheme = urlsplit(address).scheme
    if "protocol not known" in str(error).lower():
        return f"write https:// in place of {scheme}://, or copy the file here"
    if getattr(error, "code", None) in (401, 403):
        return "only who is logged in may read it: fetch it yourself, and name the file"
    return "check the address in a browser, and the network"
