"""Places in the cache for prepared data, and for what processes pass to one another."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from nbtune.disk import cache_folder

UNFINISHED = 24 * 3600.0  # seconds after which a folder that was never sealed is rubbish


def prepared_folder() -> Path:
    """Return where prepared data is kept; it need not exist."""
    return cache_folder() / "prepared"


def new_place() -> Path | None:
    """Make a folder of one's own beside the prepared ones, to be filled; None where nothing can be written."""
    root = prepared_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob("new-*"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > UNFINISHED:
                shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix="new-", dir=root))
    except OSError:
        return None


def remove(place: Path) -> None:
    """Remove a folder of files that is no more wanted; what is still open may stay."""
    with contextlib.suppress(OSError):
        for file in place.glob("*"):
            file.unlink()
        os.rmdir(place)


def workplace() -> Path:
    """Make a folder for passing things: in the cache, or where nothing can be written there, the system's."""
    return new_place() or Path(tempfile.mkdtemp(prefix="nbtune-"))
