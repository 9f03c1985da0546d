"""control.json: wishes that any process can write into the run folder."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from nbtune.atomic_io import read_json, write_json
from nbtune.disk import disk_error
from nbtune.errors import TrainError
from nbtune.store import foreign
from nbtune.train.control import Wishes

_LOOK_EVERY = 0.05  # seconds between looks at the disk
_WRITING = threading.Lock()
_FITS: dict[str, Callable[[Any], bool]] = {  # anybody may have written the file: what is no such wish is none
    "mode": lambda value: value in get_args(get_type_hints(Wishes)["mode"]),
    "checkpoint": lambda value: type(value) is int,
    "sample": lambda value: type(value) is int,
    "learning_rate": lambda value: value is None or (type(value) is float and 0 < value < math.inf),
}


def wish(folder: Path, **changes: Any) -> None:
    """Change some of the wishes; `checkpoint=True` and `sample=True` count up.

    Raises:
        TrainError: the folder cannot be written; or another trainer's schedule is to be changed.
    """
    if "learning_rate" in changes:
        foreign.refuse(folder, "set its learning rate")
    with _WRITING:
        now = _read(folder / "control.json")
        for counter in ("checkpoint", "sample"):
            if changes.get(counter) is True:
                changes[counter] = getattr(now, counter) + 1
        try:
            write_json(folder / "control.json", asdict(replace(now, **changes)))
        except OSError as error:
            raise disk_error(error, TrainError, "the wish could not be written down", place=folder.name) from error


def _read(path: Path) -> Wishes:
    body = read_json(path) or {}
    return Wishes(**{key: value for key, value in body.items() if key in _FITS and _FITS[key](value)})


class FileControl:
    """The loop's view of control.json; looks at the disk at most twenty times a second."""

    def __init__(self, folder: Path) -> None:
        self._path, self._stamp, self._looked = folder / "control.json", (0, 0), 0.0
        self._wishes = Wishes()

    def look(self) -> Wishes:
        """See `nbtune.train.control.Control.look`."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
            try:
                stat = self._path.stat()
            except OSError:
                return self._wishes
            if (stat.st_mtime_ns, stat.st_ino) != self._stamp:
                self._stamp = (stat.st_mtime_ns, stat.st_ino)
                self._wishes = _read(self._path)
        return self._wishes

    def wait(self, seconds: float) -> None:
        """See `nbtune.train.control.Control.wait`."""
        time.sleep(min(seconds, _LOOK_EVERY))
