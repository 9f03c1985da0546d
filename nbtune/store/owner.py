"""Which process owns a run: a lock file that a crash cannot leave behind for good.

The lock names host, pid and the process's start time, so that a pid used again is not mistaken for the owner. Within
one process the live engines are known by a set, since a thread can end while its process lives on.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from nbtune.errors import TrainError
from nbtune.store.files import read_json

__all__ = ["Ownership", "is_owned"]

_LIVE: set[str] = set()
_GUARD = threading.Lock()


class Ownership:
    """Held while an engine works on a run folder.

    Raises:
        TrainError: somebody who lives owns it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / "owner.json"

    def __enter__(self) -> Ownership:
        with _GUARD:
            for _ in range(2):
                try:
                    fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                except FileExistsError:
                    if is_owned(self.folder):
                        raise TrainError(
                            f"the run `{self.folder.name}` is at work already ({_who(self._path)})",
                            fix="attach to it, or stop it first",
                        ) from None
                    self._path.unlink(missing_ok=True)
                    continue
                with os.fdopen(fd, "w") as file:
                    json.dump(_me(), file)
                _LIVE.add(str(self._path.resolve()))
                return self
        raise TrainError(f"somebody else has just taken the run `{self.folder.name}`", fix="attach to it")

    def __exit__(self, *_: object) -> None:
        with _GUARD:
            _LIVE.discard(str(self._path.resolve()))
            self._path.unlink(missing_ok=True)


def is_owned(folder: Path) -> bool:
    """Whether a living engine works on the folder."""
    path = folder / "owner.json"
    owner = read_json(path)
    if owner is None:
        # the file is made first and written next: an empty one is young, or its maker was killed in between
        return path.exists() and time.time() - path.stat().st_mtime < 5
    if owner.get("host") != socket.gethostname():
        return time.time() - path.stat().st_mtime < 24 * 3600  # cannot be asked: believed for a day
    if owner.get("pid") == os.getpid() and owner.get("started") == _started(os.getpid()):
        return str(path.resolve()) in _LIVE
    return _started(owner.get("pid", -1)) == owner.get("started")


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except (psutil.Error, ValueError):
        return None


def _who(path: Path) -> str:
    owner = read_json(path) or {}
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
