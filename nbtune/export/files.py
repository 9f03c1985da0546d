"""Files that are whole or not there: written beside, renamed at the end, with the space for them checked first."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from nbtune.errors import ExportError
from nbtune.untrusted import harmless

__all__ = ["atomic_file", "atomic_folder", "check_space", "folder_bytes", "gigabytes", "refuse_links"]

_PART = re.compile(r"^\.(?P<name>.+)\.part-(?P<pid>\d+)-[0-9a-f]{8}$")
_MARGIN = 16 << 20  # the file system's own tables


def gigabytes(count: int) -> str:
    """A number of bytes for people: ``"4.61 GB"``, ``"12 MB"``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{max(count, 1) / 1e6:.3g} MB"


def refuse_links(folder: Path, parts: Sequence[str]) -> None:
    """Follow no link out of a run's folder: what it leads to is somebody's own, and would be copied or uploaded.

    Args:
        folder: the run's.
        parts: the folders in it that are looked through; ``""`` is all of it.

    Raises:
        ExportError: names the link.
    """
    root = folder.resolve()
    for part in parts:
        for path in _links(folder / part):
            if not path.resolve().is_relative_to(root):
                raise ExportError(
                    "this link leads out of the run's folder, and is not followed",
                    place=harmless(path.relative_to(folder.parent), line=True),
                    fix="put the file itself there if it is yours, or give another place with out=.",
                )


def _links(top: Path) -> Iterator[Path]:
    """Every link at or below a folder; none is entered."""
    if top.is_symlink():
        yield top
        return
    for folder, folders, files in os.walk(top, followlinks=False):
        yield from (path for name in (*folders, *files) if (path := Path(folder) / name).is_symlink())


def folder_bytes(folder: Path) -> int:
    """The bytes of all files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_space(out: Path, needed: int) -> None:
    """Refuse work whose result would not fit.

    Args:
        out: the file or folder that will be written; its nearest existing parent is asked.
        needed: bytes.

    Raises:
        ExportError: with what is needed and what is free, in GB.
    """
    there = out.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed + _MARGIN > free:
        raise ExportError(
            f"this needs {gigabytes(needed)} of disk, and {gigabytes(free)} are free",
            place=str(out),
            fix="free some space, export to another disk (out=...), or choose a smaller type.",
        )


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; at the end it is renamed to `path`, on any failure it is removed.

    Raises:
        ExportError: the disk is full, or the folder cannot be written to.
    """
    with _explained(path):
        part = _beside(path)
    try:
        with _explained(path):
            yield part
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):  # the error that is on its way says more
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield a fresh folder beside `path`; at the end it takes the place of `path`, on any failure it is removed.

    Args:
        path: the folder to make. One that is already there is replaced only if it is empty or holds a file `marker`.

    Raises:
        ExportError: `path` holds something else, the disk is full, or the parent cannot be written to.
    """
    if path.exists() and not path.is_dir():
        raise ExportError("there is a file of that name", place=str(path), fix="choose another folder with out=.")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise ExportError(
            "this folder holds other things, and is left alone", place=str(path), fix="choose an empty or new folder."
        )
    with _explained(path):
        part = _beside(path)
        part.mkdir()
    try:
        with _explained(path):
            yield part
            _swap(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _swap(part: Path, path: Path) -> None:
    if not path.exists():
        os.replace(part, path)
        return
    old = _beside(path)
    os.replace(path, old)
    try:
        os.replace(part, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    return path.parent / f".{path.name}.part-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _remove_stale(path: Path) -> None:
    """Remove what a killed process left of an earlier try at `path`."""
    for other in path.parent.iterdir():
        match = _PART.match(other.name)
        if not match or match["name"] != path.name or _alive(int(match["pid"])):
            continue
        if other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
        else:
            other.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            cause, fix = "the disk is full", "free some space, or export to another disk (out=...)."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            cause, fix = "this place cannot be written to", "choose another folder with out=."
        elif error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG):
            cause, fix = f"{error.strerror} ({error.filename or path.name})", "see that the path exists and try again."
        else:
            raise
        raise ExportError(cause, place=str(path), fix=fix) from error
