"""What the user wishes of a run, and how the loop learns of it.

The UI and the API write wishes, the loop looks at every micro-step and answers with an event. Nobody calls into the
loop, so a wish can come from any thread, process or machine that can write it down.
"""

from __future__ import annotations

from dataclasses import dataclass
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
