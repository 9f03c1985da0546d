"""Requests to the model of a run that is at work, and its answers: files in the run's folder ``requests/``.

    <id>.json         what is asked; the engine takes it away and answers between two micro-steps
    <id>.said         JSON lines that are heard before the answer is whole
    <id>.answer.json  the answer
    <id>.left         whoever asked has gone

So it makes no difference in which process either side is.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbtune.atomic_io import read_json, write_json
from nbtune.errors import TrainError
from nbtune.untrusted import parse

_LOOK_EVERY = 0.05  # seconds between looks at the disk


def ask(
    folder: Path,
    request: dict[str, Any],
    *,
    timeout: float,
    alive: Callable[[], bool],
    told: Callable[[dict[str, Any]], None] | None = None,
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

    def new(self) -> list[dict[str, Any]]:
        """Return the whole lines since last time."""
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

    def say(self, word: dict[str, Any]) -> None:
        """Say a part of the answer: a JSON object."""
        with (self._box / f"{self._name}.said").open("a", encoding="utf-8") as file:
            file.write(json.dumps(word, ensure_ascii=False) + "\n")

    def gone(self) -> bool:
        """Return whether nobody waits any more; looks at the disk at most twenty times a second."""
        now = time.monotonic()
        if not self._gone and now - self._looked >= _LOOK_EVERY:
            self._looked, self._gone = now, (self._box / f"{self._name}.left").exists()
        return self._gone

    def answer(self, answer: dict[str, Any]) -> None:
        """Give the whole answer; who is gone gets none."""
        self._looked = 0.0
        if not self.gone():
            write_json(self._box / f"{self._name}.answer.json", answer)
            return
        for ending in ("said", "left"):
            (self._box / f"{self._name}.{ending}").unlink(missing_ok=True)


def answer_requests(folder: Path, answer: Callable[[dict[str, Any], Asked], dict[str, Any]]) -> None:
    """Answer what waits in the box: `answer` maps a request, and who asked, to a JSON-able mapping."""
    box = folder / "requests"
    if not box.is_dir() or box.is_symlink():  # a link leads anywhere, and what is answered is deleted
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
