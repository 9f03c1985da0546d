"""Which process owns a run: a lock file that a crash cannot leave behind for good.

The lock names the machine (host, boot, space of process ids), the process and the process's start, so that a pid used
again, another container or a restarted machine is not mistaken for the owner. The owner touches it every few seconds:
where the process cannot be asked, because it is on another machine, a lock that nobody touches is nobody's. Within one
process the live engines are known by a set, since a thread can end while its process lives on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbtune.atomic_io import create_file, hidden, read_json
from nbtune.disk import disk_error
from nbtune.errors import TrainError
from nbtune.store import batch_job

STARTING = "starting.json"
_BEAT = 10.0  # seconds between two touches of the lock
_SILENT = 90.0  # seconds without a touch after which an owner on another machine is gone; network folders may lag by 60
_LIVE: set[str] = set()
_GUARD = threading.Lock()
_clocks: dict[str, tuple[float, float]] = {}  # folder -> how far its clock is ahead of our monotonic one, asked when


class TakenOver(TrainError):
    """Somebody else owns the run by now: this process must not write into its folder any more."""


class Ownership:
    """Held while an engine works on a run folder.

    Args:
        folder: the run's.
        lock: `STARTING` for a launcher, which is at work before the engine is and waits for it.
    Raises:
        TrainError: somebody who lives owns it, or the folder cannot be written.
    """

    def __init__(self, folder: Path, lock: str = "owner.json") -> None:
        self.folder, self._path = folder, folder / lock
        self._me = {
            **{**_here(), **_of_folder(folder)},
            **{"pid": os.getpid(), "started": _started(os.getpid()), "token": uuid.uuid4().hex},
        }
        self._lost, self._over = threading.Event(), threading.Event()
        self._beating = threading.Thread(target=self._beat, name=f"nbtune-beat-{folder.name}", daemon=True)

    def __enter__(self) -> Ownership:
        with _GUARD:
            for _ in range(3):
                try:
                    taken = self._take()
                except OSError as error:
                    raise disk_error(
                        error, TrainError, "the run's folder cannot be written", place=self.folder.name
                    ) from error
                if taken:
                    _LIVE.add(self._me["token"])
                    self._beating.start()
                    return self
                found = read_json(self._path)
                if _is_held(self._path):
                    raise TrainError(
                        f"the run `{self.folder.name}` is at work already ({_who(self._path)})", fix=_what_now(found)
                    )
                self._remove(found)
        raise TrainError(f"somebody else has just taken the run `{self.folder.name}`", fix="attach to it")

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beating.join()
        with _GUARD:
            _LIVE.discard(self._me["token"])
            if self._is_mine():
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Check, between steps, that the lock is still ours.

        Raises:
            TakenOver: another machine took this one for dead, and works on the run.
        """
        if self._lost.is_set():
            raise TakenOver(
                f"the run `{self.folder.name}` was taken over by another process ({_who(self._path)})",
                fix="attach to it; this process had been silent for too long",
            )

    def _take(self) -> bool:
        return create_file(self._path, json.dumps(self._me).encode())

    def _remove(self, dead: Any) -> None:
        """Take a dead owner's lock away: if somebody has replaced it since we looked, theirs is put back."""
        aside = hidden(self._path, "gone")
        with suppress(OSError):
            self._path.rename(aside)
            if read_json(aside) != dead and not self._path.exists():
                aside.rename(self._path)
            aside.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        return (read_json(self._path) or {}).get("token") == self._me["token"]

    def _beat(self) -> None:
        while not self._over.wait(_BEAT):
            with suppress(OSError):
                if self._is_mine():
                    os.utime(self._path)
                elif self._path.exists() or not self._take():
                    self._lost.set()
                    return


def lock_for_job(folder: Path, number: str) -> dict[str, str]:
    """Return what a lock says of a job of Slurm, which works on the run sooner or later."""
    return {**_of_folder(folder), batch_job.JOB: number}


def is_owned(folder: Path) -> bool:
    """Return whether a living engine works on the folder, or is about to."""
    try:
        return _is_held(folder / "owner.json") or _is_held(folder / STARTING)
    except OSError:  # it has vanished meanwhile, or may not be looked into
        return False


def wait_until_free(folder: Path) -> None:
    """Wait for a dead engine's lock to be nobody's; the launcher's own does not count, and a living engine's is for
    `Ownership` to refuse."""
    until = time.monotonic() + _SILENT + 2 * _BEAT
    while _is_held(folder / "owner.json") and time.monotonic() < until:
        time.sleep(0.5)


def _is_held(path: Path) -> bool:
    owner = read_json(path)
    if owner is None:
        # without links the file is made first and written next: an empty one is young, or its maker was killed
        return _silence(path) < 5
    if batch_job.JOB in owner:
        number = batch_job.number_of(path)
        return number is not None and not _is_a_copy(owner, path) and batch_job.is_there(number)
    machine = _here()
    if any(owner[key] != value for key, value in machine.items() if key in owner):
        return _silence(path) < _SILENT
    if _is_a_copy(owner, path):
        return False
    if type(owner.get("pid")) is not int:
        return False
    if owner.get("pid") == os.getpid() and owner.get("started") == _started(os.getpid()):
        return owner.get("token") in _LIVE
    began = _started(owner["pid"])
    return began is not None and began == owner.get("started")  # a process that is gone is no owner, whatever is said


def _is_a_copy(owner: dict[str, Any], path: Path) -> bool:
    """Return whether the folder was copied while the run was at work where it came from."""
    mine = _of_folder(path.parent)
    return owner.keys() >= mine.keys() and all(owner[key] != value for key, value in mine.items())


@functools.cache
def _here() -> dict[str, Any]:
    """Return the machine: its name, its boot, and the space in which a process id means something
    (a container's own)."""
    boot, space = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "space": space}


def _of_folder(folder: Path) -> dict[str, str]:
    """Return which folder it is: where it lies (not in words: a folder may be shared) and what the file system calls
    it."""
    status = folder.stat()
    path = hashlib.sha256(str(folder.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return {"path": path, "inode": f"{status.st_dev}:{status.st_ino}"}


def _started(pid: int) -> float | None:
    """Return when a living process began: on Linux in ticks since the boot, which no change of the clock moves."""
    try:
        text = Path(f"/proc/{int(pid)}/stat").read_text()
    except (OSError, ValueError):
        if Path("/proc/self/stat").exists():
            return None
        return _started_elsewhere(pid)
    fields = text.rpartition(")")[2].split()  # after the name, which may hold anything
    return None if fields[0] in "ZX" else float(fields[19])


def _started_elsewhere(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except (psutil.Error, ValueError):
        return None


def _silence(path: Path) -> float:
    """Return the seconds since the lock was touched, by the clock of its own file system: two
    machines' clocks differ."""
    try:
        touched = path.stat().st_mtime
    except OSError:
        return float("inf")
    silence = abs(_now_there(path.parent) - touched)
    return silence if silence < 5 else abs(_now_there(path.parent, again=True) - touched)


def _now_there(folder: Path, *, again: bool = False) -> float:
    """Return the time on the folder's file system, asked of it now and then: a question is a file that is made."""
    clock = _clocks.get(str(folder))
    if clock is None or (again and time.monotonic() - clock[1] > _BEAT):
        now = time.monotonic()
        clock = _clocks[str(folder)] = (_clock_of(folder) - now, now)
    return clock[0] + time.monotonic()


def _clock_of(folder: Path) -> float:
    probe = hidden(folder / "clock", "tmp")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()  # it cannot be written
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _who(path: Path) -> str:
    owner = read_json(path) or {}
    if batch_job.JOB in owner:
        return f"job {owner[batch_job.JOB]} of Slurm"
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"


def _what_now(owner: Any) -> str:
    if isinstance(owner, dict) and any(owner.get(key) != value for key, value in _here().items()):
        return f"attach to it; if that machine is gone, it is free {_SILENT:.0f} s after its last sign of life"
    return "attach to it, or stop it first"
