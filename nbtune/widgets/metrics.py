"""The numbers of a run as columns, of bounded length however long the run is.

A row stands for `count` steps in a row, from raw index `first`. What is long ago is merged into boxes of a power of
two steps, which keep their extremes, so that a picture of a million steps has the peaks of the real one.
``js/src/shared/rows.js`` is the same in JavaScript.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nbtune.events import Processes, Step

# what a row holds, and which number stands for several of a column; the page's half reads this file, too
_MERGED: dict[str, str] = json.loads(Path(__file__).with_name("columns.json").read_text(encoding="utf-8"))
COLUMNS = tuple(_MERGED)
_FIRST, _COUNT, _STEP = map(COLUMNS.index, ("first", "count", "step"))
_REDUCED = {"sum": np.add, "min": np.fmin, "max": np.fmax}


class Series:
    """Steps, oldest first; memory is bounded by `limit` rows of 88 bytes.

    Args:
        limit: rows kept at most; when there are more, they are merged to at most half of it.
    """

    def __init__(self, limit: int = 4096) -> None:
        self.limit = limit
        self.next = 0
        self._rows = np.empty((len(COLUMNS), 2 * limit), dtype=np.float64)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> np.ndarray:
        """float64 [len(COLUMNS), rows], a view."""
        return self._rows[:, : self._length]

    def column(self, name: str) -> np.ndarray:
        """Return float64 [rows], a view."""
        return self.rows[COLUMNS.index(name)]

    def add(self, steps: Iterable[Step]) -> None:
        """Append one row per step."""
        for step in steps:
            if self._length == self._rows.shape[1]:
                self._shrink()
            self._rows[:, self._length] = row_of(self.next, step)
            self._length += 1
            self.next += 1
        if self._length > self.limit:
            self._shrink()

    def restore(self, rows: np.ndarray, next: int) -> None:
        """Start from rows that were merged elsewhere, at most `limit` of them; `next` is the raw index after them."""
        self._length, self.next = rows.shape[1], next
        self._rows[:, : self._length] = rows

    def cut(self, step: int) -> bool:
        """Forget what is at `step` or later (a run that went back to a checkpoint); True if there was something."""
        if not self._length or self._rows[_STEP, self._length - 1] < step:
            return False
        keep = int(np.searchsorted(self.column("step"), step, side="left"))
        self.next = int(self._rows[_FIRST, keep])
        self._length = keep
        return True

    def since(self, first: int, limit: int) -> np.ndarray | None:
        """Return the rows from raw index `first`, merged to at most `limit`; None if `first` lies
        inside a merged row."""
        start = int(np.searchsorted(self.column("first"), first, side="left"))
        behind = self._rows[_FIRST, start] if start < self._length else self.next
        return merged(self.rows[:, start:], limit) if behind == first else None

    def snapshot(self, limit: int) -> np.ndarray:
        """Return all rows, merged to at most `limit`: float64 [len(COLUMNS), rows], a copy."""
        return merged(self.rows, limit).copy()

    def _shrink(self) -> None:
        small = merged(self.rows, self.limit // 2)
        self._length = small.shape[1]
        self._rows[:, : self._length] = small


def merged(rows: np.ndarray, limit: int, group: int = 0) -> np.ndarray:
    """Return `rows` in boxes of the smallest power of two steps that gives at most `limit` boxes; `rows` itself if it
    fits.

    With `group`, each so many rows become one instead.
    """
    if rows.shape[1] <= limit and not group:
        return rows
    starts = np.arange(0, rows.shape[1], group) if group else _starts(rows[_FIRST], limit)
    counts = np.add.reduceat(rows[_COUNT], starts)
    ends = np.append(starts[1:], rows.shape[1]) - 1
    out = rows[:, ends].copy()
    for k, way in enumerate(_MERGED.values()):
        if way == "first":
            out[k] = rows[k, starts]
        elif way == "mean":
            out[k] = np.add.reduceat(rows[k] * rows[_COUNT], starts) / counts
        elif way != "last":
            out[k] = _REDUCED[way].reduceat(rows[k], starts)
    return out


def _starts(first: np.ndarray, limit: int) -> np.ndarray:
    """Return where the boxes of the smallest power of two steps begin that are at most `limit`."""
    width = 2
    while len(starts := np.flatnonzero(np.diff(first // width, prepend=-1.0))) > limit:
        width *= 2
    return starts


def row_of(index: int, step: Step) -> tuple[float, ...]:
    """Return a step as a row of `COLUMNS`."""
    loss = step.loss
    return (
        index,
        1,
        step.step,
        loss,
        loss,
        loss,
        step.learning_rate,
        step.grad_norm,
        step.tokens_per_second,
        held_at_most(step),
        step.time,
    )


def held_at_most(step: Step) -> int:
    """Return the bytes that a step held at most: on a GPU with what its allocator keeps ready, as the chart of what
    holds memory shows it; of a process, which tells its RAM twice and the peak of all its life, its RAM.

    >>> gpu = Step(step=1, loss=1.0, memory_allocated=16, memory_reserved=71, memory_peak=60)
    >>> cpu = Step(step=1, loss=1.0, memory_allocated=2, memory_reserved=2, memory_peak=9)
    >>> held_at_most(gpu), held_at_most(cpu)
    (71, 2)
    """
    of_a_process = step.memory_reserved == step.memory_allocated > 0
    peak = 0 if of_a_process else step.memory_peak
    return max(step.memory_allocated, step.memory_reserved, peak)


_EACH = 4  # processes that have a line each: of more the ends and the middle


def figures_of_processes(said: Processes) -> dict[str, float]:
    """Return what the monitor draws of several processes: seconds of their own in a step, GiB at most, GB/s sent.

    >>> figures_of_processes(Processes(step=9, seconds=(0.5, 0.25), memory=(2**30, 2**30), sent=10**9))
    {'process 1': 0.5, 'process 2': 0.25, 'process 1 GiB': 1.0, 'process 2 GiB': 1.0, 'sent GB/s': 2.0}
    """
    both = {"": said.seconds, " GiB": [size / 2**30 for size in said.memory]}
    figures: dict[str, float] = {}
    for unit, values in both.items():
        if len(values) > _EACH:
            least, *between, most = sorted(values)
            some = {"process, most": most, "process, middle": between[len(between) // 2], "process, least": least}
        else:
            some = {f"process {k}": value for k, value in enumerate(values, 1)}
        figures |= {f"{name}{unit}": round(value, 6) for name, value in some.items()}
    link = {"sent GB/s": round(said.link / 1e9, 4)} if said.sent else {}
    return {name: value for name, value in (figures | link).items() if np.isfinite(value)}
