"""Rows that come one by one (`datasets.IterableDataset`, generators, other iterators): written down as they come.

What does not fit into memory need not: a spool is a temporary jsonl file, read through a memory map, and gone with the
process. It lies in the cache. It takes no more of a stream than somebody has asked for, and of one that can be read
only once everybody gets the same rows: a plan before the run, and the run.
"""

from __future__ import annotations

import inspect
import itertools
import json
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any

from nbtune.data.sources.cache_folder import workplace
from nbtune.data.sources.files import read_file
from nbtune.data.sources.json_line import to_json
from nbtune.data.sources.rows import ListRows, Rows
from nbtune.disk import free_bytes, gigabytes
from nbtune.errors import DataError

_MOST_KEPT = 32
_MOST_UNASKED = 10_000_000  # rows of a stream of which nobody said how many: one without an end
_LOOK = 1_000  # rows between two looks at the disk
_ONCE: dict[int, tuple[Spool, Any]] = {}  # of what can be read only once, by its id


class Spool:
    """A stream, as far as it was asked for.

    Args:
        begin: returns what gives the rows.
        name: what people call it.
    """

    def __init__(self, begin: Callable[[], Iterator[Any]], name: str) -> None:
        self._begin, self._name = begin, name
        self._stream: Iterator[Any] | None = None
        self._file = workplace() / "rows.jsonl"
        self._count, self._ended, self._busy = 0, False, threading.Lock()
        self._failed: DataError | None = None
        self._most: int | None = None
        weakref.finalize(self, shutil.rmtree, self._file.parent, ignore_errors=True)

    def rows(self, most: int | None) -> Rows:
        """Return at least the first `most` rows, or all.

        Raises:
            DataError: what gives them failed, or a value cannot be written down.
        """
        self._take(most)
        return read_file(self._file, self._name)

    def head(self, count: int) -> Rows:
        """Return the first `count` rows, in memory."""
        self._take(count)
        with self._file.open(encoding="utf-8") as file:
            return ListRows([json.loads(line) for line in itertools.islice(file, count)], self._name)

    def _take(self, most: int | None) -> None:
        with self._busy, self._file.open("a", encoding="utf-8") as file:
            self._most = most
            while not self._ended and self._wants_more(most):
                self._take_one(file)
            if self._failed is not None and self._wants_more(most):
                raise self._failed

    def _wants_more(self, most: int | None) -> bool:
        return most is None or self._count < most

    def _take_one(self, file: IO[str]) -> None:
        """Write down the next row. Where it cannot be had, or not be written, the stream has ended: nobody gets what
        comes behind it as if nothing were missing."""
        place = f"{self._name}, row {self._count}"
        if self._most is None and self._count % _LOOK == 0 and (why := self._goes_on(file.tell())) is not None:
            fix = f"say how many are wanted: {{source: {self._name}, max_rows: 10000}}"
            self._ended, self._failed = (
                True,
                DataError(f"it goes on after {self._count:,} rows{why}", place=place, fix=fix),
            )
            return
        try:
            if self._stream is None:
                self._stream = iter(self._begin())
            row = next(self._stream)
        except StopIteration:
            self._ended = True
            return
        except BaseException as error:  # the user's code may raise anything, and be interrupted; the row says where
            self._ended, self._failed = True, self._breakage(error, place)
            if isinstance(error, Exception):
                return
            raise
        try:
            row = {"text": row} if isinstance(row, str) else row
            file.write((to_json(row, place) if row else json.dumps(row)) + "\n")
        except DataError as error:
            self._ended, self._failed = True, error
            return
        self._count += 1

    def _goes_on(self, size: int) -> str | None:
        """Return what is to be said of a stream that may have no end; None: it may go on."""
        if self._count >= _MOST_UNASKED:
            return ""
        if size > free_bytes(self._file):
            return f", which take {gigabytes(size)} of the disk, more than is left"
        return None

    def _breakage(self, error: BaseException, place: str) -> DataError:
        failed = DataError(
            f"`{self._name}` failed: {type(error).__name__}: {error}",
            place=place,
            fix="mend what gives the rows; or take fewer: {source: …, max_rows: …}",
        )
        failed.__cause__ = error
        return failed


def spool_of(value: Any, name: str) -> Spool:
    """Return the spool of a stream: anew of what can be read again, always the same of what cannot."""
    if not isinstance(value, Iterator):
        return Spool(value if inspect.isgeneratorfunction(value) else lambda: iter(value), name)
    if (kept := _ONCE.get(id(value))) is not None:
        return kept[0]
    spool = Spool(lambda: value, name)
    while len(_ONCE) >= _MOST_KEPT:
        del _ONCE[next(iter(_ONCE))]
    _ONCE[id(value)] = spool, value  # as long as it is held here its number is no other's
    return spool
