"""control.json: wishes that any process can write into the run folder, and requests to the live model."""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from nbtune.errors import TrainError
from nbtune.store.files import as_train_error, read_json, write_json
from nbtune.train.control import Wishes
from nbtune.untrusted import parse

__all__ = ["Asked", "FileControl", "answer_requests", "ask", "wish"]

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


def ask(
    folder: Path,
    request: dict[str, Any],
    *,
    timeout: float,
    alive: Callable[[], bool],
    told: Callable[[Any], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any] | None:
    """Put a request to the model that is being trained, and wait for the answer; None: `should_stop` said so first.

    Args:
        folder: the run's.
        request: what `answer_requests`'s function understands.
        timeout: seconds without a word.
        alive: when it says no, nobody will answer.
        told: is given what the run says before its answer is whole.
        should_stop: asked twenty times a second; a run that works on the answer is then told to leave it.
    Raises:
        TrainError: no answer came.
    """
    box = folder / "requests"
    box.mkdir(exist_ok=True)
    name, answer = uuid.uuid4().hex, None
    write_json(box / f"{name}.json", request)
    heard, end = _Heard(box / f"{name}.said"), time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            answer = read_json(box / f"{name}.answer.json")
            for word in heard.new():
                end = time.monotonic() + timeout
                if told is not None:
                    told(word)
            if answer is not None:
                return answer
            if should_stop is not None and should_stop():
                return None
            if not alive():
                break
            time.sleep(_LOOK_EVERY)
    finally:
        _leave(box, name, answered=answer is not None)
    raise TrainError("the run did not answer", fix="try again, or wait until it has ended")


def _leave(box: Path, name: str, *, answered: bool) -> None:
    """Take a request and what was said to it away; a run that is at work on it is told so, and takes away the rest."""
    if not answered:
        try:
            (box / f"{name}.json").unlink()
        except FileNotFoundError:
            (box / f"{name}.left").touch()
    for ending in ("said", "answer.json"):
        (box / f"{name}.{ending}").unlink(missing_ok=True)


class _Heard:
    """JSON lines that are being written."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def new(self) -> list[Any]:
        """The whole lines since last time."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [parse(line) for line in whole.splitlines()]


class Asked:
    """Who waits for an answer: can be told of it while it is made, and may have gone."""

    def __init__(self, box: Path, name: str) -> None:
        self._box, self._name, self._looked, self._gone = box, name, 0.0, False

    def say(self, word: Any) -> None:
        """A part of the answer; anything that is JSON."""
        with (self._box / f"{self._name}.said").open("a", encoding="utf-8") as file:
            file.write(json.dumps(word, ensure_ascii=False) + "\n")

    def gone(self) -> bool:
        """Nobody waits any more; looks at the disk at most twenty times a second."""
        now = time.monotonic()
        if not self._gone and now - self._looked >= _LOOK_EVERY:
            self._looked, self._gone = now, (self._box / f"{self._name}.left").exists()
        return self._gone

    def answer(self, answer: dict[str, Any]) -> None:
        """The whole answer; who is gone gets none."""
        self._looked = 0.0
        if not self.gone():
            write_json(self._box / f"{self._name}.answer.json", answer)
            return
        for ending in ("said", "left"):
            (self._box / f"{self._name}.{ending}").unlink(missing_ok=True)


def answer_requests(folder: Path, answer: Callable[[dict[str, Any], Asked], dict[str, Any]]) -> None:
    """Answer what waits in the box: `answer` maps a request, and who asked, to a JSON-able mapping."""
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
        asked = Asked(box, path.stem)
        asked.answer(answer(request, asked))
