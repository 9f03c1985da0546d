"""One way to write: files and folders that are whole or not there.

What is new is written beside, flushed, and renamed. A hidden name says what something is for:

| name | is | who clears it after a crash |
|---|---|---|
| ``.NAME.MARK.tmp`` | being written | `sweep`, by the one who owns the folder (a run's engine) |
| ``.NAME.MARK.old`` | NAME, until the new one took its place | `sweep`; it is put back where NAME is missing |
| ``.NAME.MARK.gone`` | being deleted | `sweep`; a run's folder: the next run that is deleted |
| ``.NAME.part-PID-MARK`` | being written where nobody owns the folder (exports) | the next writer, if PID is gone |
| ``.NAME.part-PID-MARK.old`` | NAME, there, until the new one took its place | the same; put back if NAME is missing |
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from nbtune.disk import disk_errors
from nbtune.errors import NbtuneError, TrainError
from nbtune.untrusted import BadFile, load

_PATIENCE = 2.0  # seconds in which another program may let go of a file (Windows: a virus scanner, an indexer)
_YOUNG = 60.0  # seconds in which a file beside may still be renamed by who writes it
_ENDINGS = (".tmp", ".old", ".gone")
_PART = re.compile(r"^\.(?P<name>.+)\.part-(?P<pid>\d+)-[0-9a-f]{8}(?P<old>\.old)?$")


# ---------------------------------------------------------------- files


@contextmanager
def replace_file(path: Path, *, shared: bool = False, raises: type[NbtuneError] | None = None) -> Iterator[Path]:
    """Yield a path beside `path` to be written; at the end it takes its place, on any failure it is removed.

    Args:
        path: the file.
        shared: its folder is nobody's: it is made where it is missing, and cleared of what a killed process left of
            an earlier try at this file.
        raises: the error that says what the disk has against it (`nbtune.disk`).
    """
    with _told(raises, path):
        beside = _fresh(path, shared=shared)
        try:
            yield beside
            _flush(beside)
            _patiently(lambda: beside.replace(path))
        finally:
            with suppress(OSError):  # the error that is on its way says more
                beside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one."""
    with replace_file(path) as beside:
        beside.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    r"""Write a whole file as UTF-8 with ``\n``, or leave the old one."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write, as `write_text` does, readable JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path, *, links: bool = False) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if it is not there, not whole, or else (see `nbtune.untrusted.load`)."""
    try:
        return load(path, links=links)
    except (FileNotFoundError, BadFile):
        return None


def create_file(path: Path, data: bytes, *, mode: int = 0o666) -> bool:
    """Make a file that is not there, whole from its first moment where the file system has hard links.

    Returns:
        False: somebody else has made it first, and theirs stays.
    """
    beside = hidden(path, "tmp")
    try:
        _write_new(beside, data, mode)
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
        except (OSError, NotImplementedError):  # a mounted drive without links
            try:
                _write_new(path, data, mode)
            except FileExistsError:
                return False
        return True
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(data)


def try_lock(file: BinaryIO) -> bool:
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


# ---------------------------------------------------------------- folders


@contextmanager
def replace_folder(
    target: Path, *, shared: bool = False, marker: str = "", raises: type[NbtuneError] | None = None
) -> Iterator[Path]:
    """Yield a new folder to fill, which takes the place of `target` when the block ends well; else nothing changes.

    Args:
        target: the folder to make.
        shared: it stands among other people's things, see `replace_file`.
        marker: a name that must be in a folder which is there already, if that is not empty: who has put something
            else there keeps it.
        raises: the error that says what the disk has against it, and that the place is taken.
    """
    if marker:
        _refuse_others(target, marker, raises or TrainError)
    with _told(raises, target):
        fresh = _fresh(target, shared=shared)
        fresh.mkdir()
        try:
            yield fresh
            for path in fresh.rglob("*"):
                if path.is_file():
                    _flush(path)
            _swap(fresh, target, hidden(target, "old", shared=shared))
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _refuse_others(target: Path, marker: str, raises: type[NbtuneError]) -> None:
    if target.exists() and not target.is_dir():
        raise raises("there is a file of that name", place=str(target), fix="choose another folder with out=.")
    if target.is_dir() and any(target.iterdir()) and not (target / marker).exists():
        raise raises(
            "this folder holds other things, and is left alone", place=str(target), fix="choose an empty or new folder."
        )


def _swap(fresh: Path, target: Path, old: Path) -> None:
    """Give the new folder its name; the one that had it is put back where that fails."""
    try:
        if target.exists():
            _patiently(lambda: target.rename(old))
        _patiently(lambda: fresh.rename(target))
    finally:
        if old.exists():
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(target)


def publish_folder(fresh: Path, target: Path, marker: str) -> None:
    """Give a filled folder its name, unless somebody was faster: then theirs stays, and ours goes.

    Raises:
        OSError: it cannot be renamed, and there is no `target` that holds `marker`.
    """
    try:
        _patiently(lambda: fresh.rename(target))
    except OSError:
        if not (target / marker).exists():
            raise
        shutil.rmtree(fresh, ignore_errors=True)


def discard(path: Path) -> None:
    """Delete a folder; nobody ever sees it half deleted."""
    gone = hidden(path, "gone")
    _patiently(lambda: path.rename(gone))
    shutil.rmtree(gone, ignore_errors=True)


# ---------------------------------------------------------------- what a crash leaves


def hidden(path: Path, ending: str, *, shared: bool = False) -> Path:
    """Return a new name beside `path`, of the kind that the table above has."""
    mark = uuid.uuid4().hex[:8]
    if not shared:
        return path.with_name(f".{path.name}.{mark}.{ending}")
    return path.with_name(f".{path.name}.part-{os.getpid()}-{mark}" + ("" if ending == "tmp" else f".{ending}"))


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


def _fresh(path: Path, *, shared: bool) -> Path:
    if shared:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_earlier(path)
    return hidden(path, "tmp", shared=shared)


def _sweep_earlier(path: Path) -> None:
    """Take away what a killed process left of an earlier try at `path`, and put back what it had only set aside."""
    import psutil

    for other in path.parent.iterdir():
        match = _PART.match(other.name)
        if not match or match["name"] != path.name or psutil.pid_exists(int(match["pid"])):
            continue
        if match["old"] and not path.exists():
            other.rename(path)
        elif other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
        else:
            other.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Bring what was written to the disk, so that a new name never stands for less than it says."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _patiently(rename: Callable[[], Any]) -> None:
    """Try again for a while: Windows refuses a new name while anybody holds the file open: readers let go within
    milliseconds."""
    end = time.monotonic() + (_PATIENCE if sys.platform == "win32" else 0.0)
    while True:
        try:
            rename()
            return
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.02)


def _told(raises: type[NbtuneError] | None, path: Path) -> Any:
    return nullcontext() if raises is None else disk_errors(raises, place=str(path))
