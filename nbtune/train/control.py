"""What the user wishes of a run, and how the loop learns of it.

The UI and the API write wishes, the loop looks at every micro-step and answers with an event. Nobody calls into the
loop, so a wish can come from any thread, process or machine that can write it down.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from nbtune.errors import TrainError


class OtherIsGone(TrainError):
    """Another process of the run has ended, so that this one cannot go on; whoever started them knows why."""


@dataclass(frozen=True)
class Wishes:
    """What is wanted now. `checkpoint` and `sample` count requests: a higher number is a new one.

    `stop` saves before it ends, `drop` does not. `learning_rate` is the new peak of the schedule, `None` as the spec
    says.
    """

    mode: Literal["run", "pause", "stop", "drop"] = "run"
    checkpoint: int = 0
    sample: int = 0
    learning_rate: float | None = None

    @property
    def ends(self) -> bool:
        """The run is to end."""
        return self.mode in ("stop", "drop")


class Control(Protocol):
    """What the loop looks at."""

    def look(self) -> Wishes:
        """Return the wishes as they stand; cheap enough for every micro-step."""

    def wait(self, seconds: float) -> None:
        """Sleep at most so long, less if a wish arrives."""


class MemoryControl:
    """Wishes within one process: for tests, scripts and other people's loops."""

    def __init__(self) -> None:
        self._wishes, self._changed = Wishes(), threading.Condition()

    def wish(self, **changes: object) -> None:
        """Change some of the wishes, for example ``wish(mode="stop")``."""
        with self._changed:
            self._wishes = replace(self._wishes, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()

    def look(self) -> Wishes:
        """See `Control.look`."""
        return self._wishes

    def wait(self, seconds: float) -> None:
        """See `Control.wait`."""
        with self._changed:
            self._changed.wait(seconds)
