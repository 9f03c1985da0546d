"""Where the cache is, what a disk has room for, and what it says against being written, in a sentence."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from nbtune.errors import DataError, ExportError, NbtuneError, TrainError

E = TypeVar("E", bound=NbtuneError)

_MARGIN = 16 << 20  # bytes; the file system's own tables
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
DISK_ERRORS = (*FULL, errno.EFBIG, *DENIED, errno.EIO, getattr(errno, "ESTALE", errno.EIO))
_NO_SUCH_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)

# What helps: where the disk is full, where it may not be written, and otherwise.
_FIXES: dict[type[NbtuneError], tuple[str, str, str]] = {
    TrainError: (
        "free some disk space, then resume: what was saved before is whole",
        "make the folder writable, or copy it to where you may write; nothing in it was lost",
        "look at the disk, then resume: what was saved before is whole",
    ),
    ExportError: (
        "free some space, or export to another disk (out=...).",
        "choose another folder with out=.",
        "see that the path exists and try again.",
    ),
    DataError: ("set NBTUNE_CACHE to a folder that can be written",) * 3,
}


def home_folder() -> Path:
    """Return the user's home folder; of a user who has none (a container's number without a name), the root."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(Path.cwd().anchor)


def cache_folder() -> Path:
    """Return where nbtune keeps what it can make again: ``$NBTUNE_CACHE``, or ``nbtune`` in the user's cache folder; it
    need not exist. Where that cannot be made (a container, CI): a folder of this user alone among the temporary ones.
    """
    if own := os.environ.get("NBTUNE_CACHE"):
        return Path(own).expanduser()
    usual = Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache") / "nbtune"
    if usual.exists() or can_be_written(usual):
        return usual
    return _of_this_user_alone() or usual


def can_be_written(folder: Path) -> bool:
    """Return whether something can be written into a folder, which is made where it is not there."""
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return os.access(nearest, os.W_OK | os.X_OK)


def _of_this_user_alone() -> Path | None:
    """Return a folder among the temporary ones that nobody else can read or has made; None where there is none."""
    if not hasattr(os, "getuid"):
        return None
    place = Path(tempfile.gettempdir()) / f"nbtune-{os.getuid()}"
    with suppress(OSError):
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        found = place.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return place
    return None


def gigabytes(count: int) -> str:
    """Return a number of bytes for people: ``"4.61 GB"``, ``"12 MB"``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{max(count, 1) / 1e6:.3g} MB"


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files under `folder`; what links lead to, and what vanishes meanwhile, is not in it."""
    return sum(_file_bytes(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names)


def _file_bytes(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where `path` is, or would be made."""
    path = path.absolute()
    folder = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(folder).free


def check_space(out: Path, needed: int, raises: type[NbtuneError]) -> None:
    """Refuse work whose result, the file or folder `out` of `needed` bytes, would not fit."""
    free = free_bytes(out)
    if needed + _MARGIN > free:
        raise raises(
            f"this needs {gigabytes(needed)} of disk, and {gigabytes(free)} are free",
            place=str(out),
            fix="free some space, export to another disk (out=...), or choose a smaller type.",
        )


def disk_error(error: OSError, kind: type[E], what: str = "", *, place: str = "") -> E:
    """Return a sentence for an error of the file system, with what helps against it.

    Args:
        error: the system's.
        kind: `TrainError` (in a run's folder), `ExportError` (something to take home) or `DataError` (in the cache).
        what: what could not be done; without it the disk's trouble itself is said.
        place: where.
    """
    full, denied, otherwise = _FIXES[kind]
    reason = error.strerror or str(error)
    if error.errno in FULL:
        cause, fix = "the disk is full", full
    elif error.errno in DENIED:
        cause, fix = "this place cannot be written to", denied
    else:
        cause = f"{reason} ({error.filename or Path(place).name})"
        fix = full if what and error.errno == errno.EFBIG else otherwise
    return kind(f"{what}: {reason}" if what else cause, place=place, fix=fix)


@contextmanager
def disk_errors(kind: type[NbtuneError], *, place: str) -> Iterator[None]:
    """Turn what the file system says against it in here into a sentence (`disk_error`); a bug's
    error stays as it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*DISK_ERRORS, *_NO_SUCH_PLACE):
            raise
        raise disk_error(error, kind, place=place) from error
