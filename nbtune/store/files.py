"""Files that a reader never sees half of: written beside, flushed, renamed; and what a crash leaves is swept up.

A hidden name says what something is for: ``.NAME.MARK.tmp`` is being written, ``.NAME.MARK.old`` was NAME until the new
one took its place, ``.NAME.MARK.gone`` is being deleted.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from nbtune.errors import TrainError
from nbtune.untrusted import BadFile, load

__all__ = [
    "DISK_ERRORS",
    "as_train_error",
    "discard",
    "from_here",
    "lock",
    "read_json",
    "replace_folder",
    "sweep",
    "write_json",
    "write_text",
]

_PATIENCE = 2.0  # seconds in which another program may let go of a file (Windows: a virus scanner, an indexer)
_YOUNG = 60.0  # seconds in which a file beside may still be renamed by who writes it
_ENDINGS = (".tmp", ".old", ".gone")
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
DISK_ERRORS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, getattr(errno, "ESTALE", errno.EIO))


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or leave the old one."""
    beside = _beside(path, "tmp")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _patiently(lambda: beside.replace(path))
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if it is not there, not whole, or else (see `nbtune.untrusted.load`)."""
    try:
        return load(path)
    except (FileNotFoundError, BadFile):
        return None


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `target` when the block ends well; else nothing changes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = _beside(target, "tmp"), _beside(target, "old")
    fresh.mkdir()
    try:
        yield fresh
        _flush(fresh)
        if target.exists():
            _patiently(lambda: target.rename(old))
        _patiently(lambda: fresh.rename(target))
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists():
            if not target.exists():
                old.rename(target)
            else:
                shutil.rmtree(old, ignore_errors=True)


def discard(path: Path) -> None:
    """Delete a folder; nobody ever sees it half deleted."""
    gone = _beside(path, "gone")
    _patiently(lambda: path.rename(gone))
    shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Take away what a writer that was killed has left in a folder, and put back what it had only set aside.

    For the one who owns the folder: nobody else makes folders in it. Files are anybody's (a wish), so only old ones go.
    """
    for path in folder.glob(".*"):
        name, _, ending = path.name[1:].rpartition(".")
        name = name.rpartition(".")[0]
        if f".{ending}" not in _ENDINGS or not name:
            continue
        if ending == "old" and not (folder / name).exists():
            path.rename(folder / name)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif abs(time.time() - path.stat().st_mtime) > _YOUNG:
            path.unlink(missing_ok=True)


def lock(file: BinaryIO) -> bool:
    """Take a file for oneself until it is closed, without waiting; False if somebody has it, or no system's lock is
    known.
    """
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ImportError):
        return False
    return True


def as_train_error(error: OSError, what: str, *, place: str = "") -> TrainError:
    """A sentence for an error of the file system, with what helps against it."""
    if error.errno in _FULL:
        fix = "free some disk space, then resume: what was saved before is whole"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        fix = "make the folder writable, or copy it to where you may write; nothing in it was lost"
    else:
        fix = "look at the disk, then resume: what was saved before is whole"
    return TrainError(f"{what}: {error.strerror or error}", place=place, fix=fix)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{ending}")


def _flush(folder: Path) -> None:
    """Brings what was written to the disk, so that a new name never stands for less than it says."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDWR)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _patiently(rename: Callable[[], Any]) -> None:
    """Windows refuses a new name while anybody holds the file open: readers let go within milliseconds."""
    end = time.monotonic() + (_PATIENCE if sys.platform == "win32" else 0.0)
    while True:
        try:
            rename()
            return
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.02)


def from_here(path: Path) -> str:
    """A path as people write it in the working folder; a home folder is `~`, so that nobody is told whose it is."""
    with suppress(ValueError):
        return path.absolute().relative_to(Path.cwd()).as_posix()
    home = Path.home()
    told = path.is_relative_to(home) and home != home.parent  # a home that is the root says nothing
    return f"~/{path.relative_to(home).as_posix()}" if told else path.as_posix()
