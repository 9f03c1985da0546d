"""The numbers of a long run on disk, beside its log: a million steps open in a blink, and any part of them in full.

columns/0.f8     one row of eleven little-endian doubles (`series.COLUMNS`) a step
columns/1.f8     a row for each full box of 8 steps, with their extremes; 2.f8 for each of 64, …
columns/state.json   how many rows count, how much of events.jsonl they are made of, and what else a panel knows

It is made of events.jsonl alone and can be deleted at any time. One panel writes it (a lock), others read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nbtune.atomic_io import read_json, try_lock, write_json
from nbtune.untrusted import open_to_append
from nbtune.widgets.metrics import COLUMNS, merged

FEW = 10_000  # steps that need no file: reading their events takes a moment
VERSION = 2  # 1 told memory between steps
_BOX = 8
_LEVELS = 9  # a row of the highest one stands for 16.7 million steps
_ROW = 8 * len(COLUMNS)
_KEEP = 4096  # rows in memory before they are written


class Columns:
    """Rows of a run, oldest first, of which the newest may still be in memory.

    Args:
        folder: of the run. Nothing is written until there are more than `FEW` rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "columns"
        self.length = 0  # rows in all
        self._written = 0
        self._fresh = np.empty((_KEEP, len(COLUMNS)))
        self._lock: BinaryIO | None = None

    def load(self) -> dict[str, Any] | None:
        """Return what `save` was given last; the rows that belong to it are there again. None: start from the log."""
        state = None if self.folder.is_symlink() else read_json(self.folder / "state.json")
        if state is None or state.get("version") != VERSION or type(rows := state.get("rows")) is not int:
            return None
        try:
            whole = all(self._file(k).stat().st_size >= rows // _BOX**k * _ROW for k in range(_LEVELS))
        except OSError:
            whole = False
        if not whole:
            return None
        self.length = self._written = rows
        return dict(state["state"])

    def reset(self) -> None:
        """Start from nothing: what is on disk does not count any more."""
        self.length = self._written = 0
        if (self.folder / "state.json").exists() and self._mine():
            (self.folder / "state.json").unlink(missing_ok=True)

    @property
    def fresh(self) -> int:
        """Rows that are in memory only."""
        return self.length - self._written

    def add(self, row: Iterable[float]) -> None:
        """Add one more step."""
        if self.fresh >= len(self._fresh):
            self._grow()
        self._fresh[self.fresh] = tuple(row)
        self.length += 1

    def _grow(self) -> None:
        grown = np.empty((max(_KEEP, 2 * len(self._fresh)), len(COLUMNS)))
        grown[: self.fresh] = self._fresh[: self.fresh]
        self._fresh = grown

    def cut(self, length: int) -> None:
        """Forget all rows from `length` on."""
        self.length = min(self.length, length)
        if self.length < self._written:
            self._written = self.length
            if self._mine():
                # Until the next `save` the files have less than state.json says: they are not used, but made anew.
                for level in range(_LEVELS):
                    with os.fdopen(open_to_append(self._file(level)), "ab") as file:
                        file.truncate(self.length // _BOX**level * _ROW)

    def save(self, state: Callable[[], dict[str, Any]], *, all_of_it: bool = False) -> bool:
        """Write what is in memory, when there is enough of it (or `all_of_it`); True if it did."""
        if self.length <= FEW or self.fresh < (1 if all_of_it else _KEEP):
            return False
        if not self._mine():
            self._lean_on_others()
            return False
        try:
            self._write()
            write_json(self.folder / "state.json", {"version": VERSION, "rows": self.length, "state": state()})
        except OSError:  # a full disk: what is shown stays in memory
            return False
        return True

    def _write(self) -> None:
        new = self._fresh[: self.fresh].copy()
        begin, self._written = self._written, self.length
        self._fresh = np.empty((_KEEP, len(COLUMNS)))
        self._append(0, begin, new)
        for level in range(1, _LEVELS):
            first, last = begin // _BOX**level, self.length // _BOX**level
            below = self._read(level - 1, first * _BOX, last * _BOX) if last > first else np.empty((0, len(COLUMNS)))
            self._append(level, first, _boxes(below))

    def _append(self, level: int, at: int, rows: np.ndarray) -> None:
        with os.fdopen(open_to_append(self._file(level)), "ab") as file:
            file.truncate(at * _ROW)
            file.write(np.ascontiguousarray(rows, dtype="<f8").tobytes())

    def _mine(self) -> bool:
        """Return whether this is the one that writes: ask for the lock until it has it."""
        if self._lock is not None:
            return True
        if self.folder.is_symlink():  # it is not nbtune's, and leads anywhere
            return False
        try:
            self.folder.mkdir(exist_ok=True)
            file = os.fdopen(open_to_append(self.folder / "lock"), "ab")
        except OSError:
            return False
        if not try_lock(file):
            file.close()
            return False
        self._lock = file
        self._lean_on_others()
        if self._written and self._written != self._on_disk():  # the files are gone, or somebody went back
            self.close()
            return False
        return True

    def _lean_on_others(self) -> None:
        """Drop from memory what somebody else has written meanwhile."""
        length_on_disk = self._on_disk()
        if self._written < length_on_disk <= self.length:
            self._fresh = self._fresh[length_on_disk - self._written :].copy()
            self._written = length_on_disk

    def _on_disk(self) -> int:
        state = read_json(self.folder / "state.json")
        rows = (state or {}).get("rows", 0)
        return rows if type(rows) is int else 0

    def close(self) -> None:
        """Let another one write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __del__(self) -> None:
        self.close()

    def rows(self, first: int, last: int, limit: int) -> np.ndarray:
        """Return rows `first`..`last` (raw indices), merged to at most `limit`: float64 [len(COLUMNS), ≤ limit]."""
        first, last = max(0, first), min(last, self.length)
        if last <= first:
            return np.empty((len(COLUMNS), 0))
        level = 0
        while (last - first) // _BOX**level > _BOX * limit and level < _LEVELS - 1:
            level += 1
        try:
            rows_found = self._between(level, first, last)
        except OSError:  # the files are gone: what is in memory is left
            rows_found = self._fresh[max(0, first - self._written) : max(0, last - self._written)]
        return merged(np.ascontiguousarray(rows_found.T), limit)

    def _between(self, level: int, first: int, last: int) -> np.ndarray:
        """Return rows of `level`, with what does not fill a box at the end from the levels below it."""
        parts, at = [], first // _BOX**level * _BOX**level
        for lower in range(level, -1, -1):
            width = _BOX**lower
            end = min(last, self._written) // width * width
            if end > at:
                parts.append(self._read(lower, at // width, end // width))
                at = end
        parts.append(self._fresh[max(0, at - self._written) : max(0, last - self._written)])
        return np.concatenate(parts)

    def _read(self, level: int, first: int, last: int) -> np.ndarray:
        count = (last - first) * len(COLUMNS)
        flat = np.fromfile(self._file(level), dtype="<f8", count=count, offset=first * _ROW)
        if len(flat) < count:
            raise OSError("a column file is too short")
        return flat.reshape(-1, len(COLUMNS))

    def _file(self, level: int) -> Path:
        return self.folder / f"{level}.f8"


def _boxes(rows: np.ndarray) -> np.ndarray:
    """Return each 8 rows as one."""
    if not len(rows):
        return rows
    return merged(np.ascontiguousarray(rows.T), len(rows) // _BOX, group=_BOX).T
