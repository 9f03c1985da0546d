"""What an export says while it is made, as events of its run; and how it is left when nobody wants it any more."""

from __future__ import annotations

import time
from collections.abc import Callable

from nbtune.errors import ExportError
from nbtune.events import Export
from nbtune.export.source import ExportedFile, Progress

_OFTEN = 1.0  # seconds between two events of an export's progress
CANCELLED = "cancelled"
COMMITTED = "commit"  # what a push says last
ShouldStop = Callable[[], bool]


class ExportCancelled(ExportError):
    """Somebody wanted it no more; nothing half done was left."""


class Said:
    """Say the events of one export."""

    def __init__(
        self,
        log: Callable[[Export], None],
        tell: Callable[[ExportedFile], None],
        kind: str,
        path: str,
        also: Progress | None,
        should_stop: ShouldStop | None,
    ) -> None:
        self._log, self._tell, self._kind, self._path, self._also = log, tell, kind, path, also
        self._should_stop = should_stop or (lambda: False)
        self._last = time.monotonic()

    def made(self, file: ExportedFile) -> ExportedFile:
        """Say that a file is there."""
        self._tell(file)
        return file

    def go_on(self) -> None:
        """Leave it here if somebody wants it no more.

        Raises:
            ExportCancelled: so it is.
        """
        if self._should_stop():
            raise ExportCancelled(CANCELLED, place=self._kind)

    def progress(self, done: int, total: int, what: str) -> None:
        """Say how far it is, now and then, unless it is wanted no more."""
        if what != COMMITTED:  # then it is done
            self.go_on()
        if self._also:
            self._also(done, total, what)
        now = time.monotonic()
        if now - self._last < _OFTEN:
            return
        self._last, share = now, min(done / max(total, 1), 0.999)
        self._log(Export(kind=self._kind, path=self._path, done=share))
