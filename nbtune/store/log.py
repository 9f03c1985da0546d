"""events.jsonl: appended by the one owner, read by anybody at any time."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from nbtune import events
from nbtune.careful import open_file

__all__ = ["EventReader", "EventWriter"]


class EventWriter:
    """Appends events, one write a line.

    A line that the disk took only half of is ended at the next event, so that no other event is lost with it.

    Args:
        path: of ``events.jsonl``.
        owner: the writer owns the run, and cuts off the torn last line that a crash may have left. Others (an export
            of a run that is at work elsewhere) only append.
    """

    def __init__(self, path: Path, *, owner: bool = True) -> None:
        self._lock, self._torn = threading.Lock(), False
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if owner:
            _cut_torn_line(path)
        else:
            self._torn = _is_torn(path)

    def __call__(self, event: events.Event) -> None:
        line = events.to_line(event).encode()
        with self._lock:
            if self._torn:
                line = b"\n" + line
            try:
                written = os.write(self._fd, line)
            except OSError:
                self._torn = True
                raise
            self._torn = written < len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file; later events are lost."""
        with self._lock:
            fd, self._fd = self._fd, -1  # the number may soon be another file's
        if fd >= 0:
            os.close(fd)


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - 2**20)
        file.seek(start)
        tail = file.read()
        end = tail.rfind(b"\n")
        if tail and end != len(tail) - 1:
            file.truncate(start + end + 1)


class EventReader:
    """All events so far, read on from where it stopped; lines that are not whole yet wait for the next `read`."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._lock = path, 0, threading.Lock()
        self.events: list[events.Event] = []

    def behind(self) -> bool:
        """The file has grown since the last `read`; costs a look at its size."""
        try:
            return self._path.stat().st_size > self._offset
        except OSError:
            return False

    def read(self) -> list[events.Event]:
        """Take in what is new, and return all events (a list that only grows: do not change it)."""
        with self._lock:
            try:
                with open_file(self._path) as file:
                    file.seek(self._offset)
                    new = file.read()
            except OSError:
                return self.events
            end = new.rfind(b"\n") + 1
            for line in new[:end].splitlines():
                try:
                    self.events.append(events.from_line(line))
                except (ValueError, TypeError):
                    continue  # a line that no version wrote: the rest of the run is still worth showing
            self._offset += end
            return self.events
