"""control.json: wishes that any process can write into the run folder, and requests to the live model."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nbtune.errors import TrainError
from nbtune.store.files import as_train_error, read_json, write_json
from nbtune.train.control import Wishes

__all__ = ["FileControl", "answer_requests", "ask", "wish"]

_LOOK_EVERY = 0.05  # seconds between looks at the disk
_WRITING = threading.Lock()


def wish(folder: Path, **changes: Any) -> None:
    """Change some of the wishes; `checkpoint=True` and `sample=True` count up.

    Raises:
        TrainError: the folder cannot be written.
    """
    with _WRITING:
        now = _read(folder / "control.json")
        for counter in ("checkpoint", "sample"):
            if changes.get(counter) is True:
                changes[counter] = getattr(now, counter) + 1
        try:
            write_json(folder / "control.json", asdict(replace(now, **changes)))
        except OSError as error:
            raise as_train_error(error, "the wish could not be written down", place=folder.name) from error


def _read(path: Path) -> Wishes:
    body = read_json(path) or {}
    return Wishes(**{k: v for k, v in body.items() if k in Wishes.__dataclass_fields__})


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


def ask(folder: Path, request: dict[str, Any], *, timeout: float, alive: Any) -> dict[str, Any]:
    """Put a request to the model that is being trained, and wait for the answer.

    Args:
        folder: the run's.
        request: what `answer_requests`'s function understands.
        timeout: seconds.
        alive: a function; when it says no, nobody will answer.
    Raises:
        TrainError: no answer came.
    """
    box = folder / "requests"
    box.mkdir(exist_ok=True)
    name = uuid.uuid4().hex
    write_json(box / f"{name}.json", request)
    answer_path, end = box / f"{name}.answer.json", time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            answer = read_json(answer_path)
            if answer is not None:
                return answer
            if not alive():
                break
            time.sleep(0.05)
    finally:
        (box / f"{name}.json").unlink(missing_ok=True)
        answer_path.unlink(missing_ok=True)
    raise TrainError("the run did not answer", fix="try again, or wait until it has ended")


def answer_requests(folder: Path, answer: Any) -> None:
    """Answer what waits in the box: `answer` maps a request to a JSON-able mapping."""
    box = folder / "requests"
    if not box.exists():
        return
    for path in sorted(box.glob("*.json")):
        if path.name.endswith(".answer.json") or path.name.startswith("."):
            continue
        request = read_json(path)
        if request is None:
            continue
        path.unlink(missing_ok=True)
        write_json(box / f"{path.stem}.answer.json", answer(request))
