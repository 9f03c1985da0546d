"""How far a run is, in one line, from its events alone: what the notebook and the command line print while they wait.

>>> from nbtune.events import State, Step
>>> progress = Progress()
>>> progress.add([State(state="running", step=49, total_steps=200), Step(step=50, loss=0.5, seconds=0.1)])
>>> progress.line()
'running · step 50/200 · loss 0.5000 · 0:15 left'
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

from nbtune.events import ENDED, Eval, Event, Processes, State, Step, Warning


def duration(seconds: float) -> str:
    """Return a duration as `"0:42"`, `"12:03"` or `"2:05:00"`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def shares(said: Processes) -> str:
    """Return how several processes share a step, in a few words.

    >>> shares(Processes(step=5, seconds=(0.41, 0.43), memory=(15 << 30, 14 << 30), exchange=0.02, sent=335_000_000))
    '2 processes 0.41-0.43 s, 15.0 GiB, 0.74 GB/s'
    """
    low, high = min(said.seconds), max(said.seconds)
    took = f"{high:.2g} s" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g}-{high:.2g} s"
    held = f"{max(said.memory, default=0) / 2**30:.1f} GiB"
    return f"{len(said.seconds)} processes {took}, {held}, {said.link / 1e9:.2g} GB/s"


class Progress:
    """Takes a run's events in order and says where it stands."""

    def __init__(self) -> None:
        self.state, self.detail = "", ""
        self.step, self.total_steps, self._at = 0, 0, -1
        self.first_loss: float | None = None
        self.loss: float | None = None
        self.eval_loss: float | None = None
        self.tokens_per_second = 0.0
        self.warnings: list[Warning] = []
        self.processes: Processes | None = None
        self._seconds: deque[float] = deque(maxlen=20)

    def add(self, events: Iterable[Event]) -> None:
        """Take events that came after those it has seen."""
        for event in events:
            if isinstance(event, Step):
                self._take_step(event)
            elif isinstance(event, State):
                self.state, self.detail = event.state, event.detail
                self._at = event.step if event.state == "running" else self._at
                self.total_steps = event.total_steps or self.total_steps
            elif isinstance(event, Eval):
                self.eval_loss = event.loss
            elif isinstance(event, Processes):
                self.processes = event if event.seconds else None
            elif isinstance(event, Warning):
                self.warnings.append(event)

    def _take_step(self, event: Step) -> None:
        made = max(1, event.step - self._at) if self._at >= 0 else 1  # another trainer says every tenth step, or so
        self._at = self.step = event.step
        self.loss = event.loss
        self.first_loss = event.loss if self.first_loss is None else self.first_loss
        self.tokens_per_second = event.tokens_per_second
        if event.seconds > 0:
            self._seconds.append(event.seconds / made)

    @property
    def ended(self) -> bool:
        """The run will not go on by itself."""
        return self.state in ENDED

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds until the last step, from the median of the latest steps; None if there is no telling."""
        if self.ended or not self._seconds or not self.total_steps:
            return None
        return (self.total_steps - self.step) * median(self._seconds)

    def line(self) -> str:
        """Return `"running · step 50/200 · loss 0.5000 · eval 0.6 · 3,100 tokens/s · 0:15 left"`."""
        parts = [self.state or "starting"]
        if self.total_steps:
            parts.append(f"step {self.step:,}/{self.total_steps:,}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.eval_loss is not None:
            parts.append(f"eval {self.eval_loss:.4f}")
        if self.tokens_per_second and not self.ended:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.processes is not None and not self.ended:
            parts.append(shares(self.processes))
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return " · ".join(parts)
