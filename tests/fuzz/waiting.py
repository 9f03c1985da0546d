"""How long a case has taken by itself: without the time in which it could have run, and others were on the processors.

Whatever it waits for itself (a lock, a pipe, a network, a sleep) counts as its own.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

_TICK = 0.25  # seconds between two looks at what is read from /proc
_PROC = Path("/proc")


def starved(before: dict[str, int], after: dict[str, int], seconds: float) -> float:
    """Return for how many of the seconds between two looks something was ready to run and did not.

    Args:
        before: nanoseconds that each thread has stood in a processor's queue in its life, at the first look.
        after: at the second one; a thread that is new began in between.
        seconds: between them.

    >>> starved({"1": 0, "2": 0}, {"1": 10**9, "2": 3 * 10**8}, 2.0)
    1.0
    """
    waited = [stood - before.get(thread, 0) for thread, stood in after.items()]
    return min(max(waited, default=0) / 1e9, seconds)


class OwnTime:
    """Counts the seconds of its own of a process, its threads and what it starts; all of them without Linux's /proc."""

    def __init__(self, pid: int, proc: Path = _PROC) -> None:
        self._pid, self._proc, self._own = str(pid), proc, 0.0
        self._looked, self._stood = time.monotonic(), self.stood()

    def seconds(self) -> float:
        """Return how many there have been."""
        now = time.monotonic()
        passed = now - self._looked
        if passed < _TICK:
            return self._own + passed
        stood = self.stood()
        self._own += passed - starved(self._stood, stood, passed)
        self._looked, self._stood = now, stood
        return self._own

    def stood(self) -> dict[str, int]:
        """Return for how many nanoseconds each thread of the process and of its children has stood in a queue."""
        found: dict[str, int] = {}
        left = [self._pid]
        while left:
            tasks = []
            with suppress(OSError):  # it has ended
                tasks = list((self._proc / left.pop() / "task").iterdir())
            for task in tasks:
                with suppress(OSError, ValueError, IndexError):
                    found[task.name] = int((task / "schedstat").read_text().split()[1])
                    left += (task / "children").read_text().split()
        return found
