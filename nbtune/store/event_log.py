"""Reading a run's log without keeping it: a million steps are 300 MB of lines.

Mark      a place in the log: how many events and bytes come before it
Follower  reads on from a mark, a piece at a time
Latest    the newest event of a type, found from the file's end
Pump      tells listeners what is new
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbtune import events
from nbtune.disk import DISK_ERRORS
from nbtune.folder_format import refuse_newer
from nbtune.untrusted import open_file, open_to_append

_PIECE = 2**21  # bytes that are read at once: some 7,000 steps
_LONGEST = 2**24  # bytes of a line: nbtune's own are far below, and what somebody else wrote may have no end of a line
_JUNK = 200_000  # lines that hold no event, after which a log is no run's
_BLOCK = 2**16  # bytes, when looking from the end
_EVERY = 0.25  # seconds between two calls of a listener, on average
_LOOK = 0.02  # seconds between looks at the log's size, when somebody listens: what is new and late is said at once
_SOON = 3.0  # seconds after a wish in which a new state is told at once, off the schedule
_STATE = f'"type":"{events.State.type}"'.encode()


class Mark(int):
    """The index of an event, which also knows where its line begins: `offset` bytes into the log."""

    offset: int | None

    def __new__(cls, index: int, offset: int | None = None) -> Mark:
        """Make one; `offset` None: only the index is known (0 bytes come before event 0)."""
        made = super().__new__(cls, index)
        made.offset = 0 if index == 0 and offset is None else offset
        return made


class Follower:
    """Reads a log piece by piece from `start` on; lines that are not whole yet wait."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self._path, self._junk = path, 0
        offset = start.offset if isinstance(start, Mark) else None
        self.mark = Mark(0) if offset is None else Mark(int(start), offset)
        while int(self.mark) < start:  # where its line begins is not known: what comes before is read, and forgotten
            before = self.mark
            self._skip = int(start) - int(before)
            if not self.read():
                break
            if int(self.mark) > start:
                self.mark = Mark(int(start), self._cut_at)
        self._skip = 0

    _skip = 0
    _cut_at = 0

    def behind(self) -> bool:
        """Return whether the file has grown; costs a look at its size."""
        try:
            return self._path.stat().st_size > (self.mark.offset or 0)
        except OSError:
            return False

    def state_ahead(self) -> bool:
        """Return whether there is a state among what is new; costs a read, and no parsing."""
        try:
            with open_file(self._path, links=False) as file:
                file.seek(self.mark.offset or 0)
                return _STATE in file.read(_PIECE)
        except OSError:
            return False

    def read(self) -> list[events.Event]:
        """Return the next events: those of at most some 2 MB; none at the end. `mark` is then behind them."""
        while True:  # what holds no event, however long it is, is passed over
            events_read, passed = self._read_piece()
            if events_read or not passed:
                return events_read

    def _read_piece(self) -> tuple[list[events.Event], bool]:
        """Return the events of a piece, and whether there was one."""
        offset = self.mark.offset or 0
        try:
            with open_file(self._path, links=False) as file:
                file.seek(offset)
                piece = file.read(_PIECE)
                end = piece.rfind(b"\n") + 1
                while not end and _PIECE <= len(piece) < _LONGEST and (more := file.read(_PIECE)):  # a very long line
                    piece += more
                    end = piece.rfind(b"\n") + 1
        except OSError:
            return [], False
        if self._junk > _JUNK:
            return [], False
        parsed: list[events.Event] = []
        at = offset
        for line in piece[:end].splitlines(keepends=True):
            at += len(line)
            try:
                parsed.append(events.from_line(line))
            except (ValueError, TypeError):
                self._junk += 1  # a line that no version wrote: the rest of the run is still worth showing
                continue
            if len(parsed) == self._skip:
                self._cut_at = at
        self.mark = Mark(int(self.mark) + len(parsed), offset + end)
        return parsed, end > 0


class Latest:
    """The newest event of a type; each look reads only what is new since the look before."""

    def __init__(self, path: Path) -> None:
        self._path, self._guard = path, threading.Lock()
        self._known: dict[type[events.Event], tuple[int, Any]] = {}

    def of(self, kind: type[Any]) -> Any:
        """Return the newest `kind`, or None."""
        with self._guard:
            seen, event = self._known.get(kind, (0, None))
            try:
                size = self._path.stat().st_size
                if size == seen:
                    return event
                if size < seen:  # a torn line was cut off
                    seen, event = 0, None
                with open_file(self._path, links=False) as file:
                    end, found = _newest(file, seen, size, kind)
            except OSError:
                return event
            self._known[kind] = end, found if found is not None else event
            return self._known[kind][1]


def _newest(file: Any, start: int, end: int, kind: type[Any]) -> tuple[int, Any]:
    """Return (where the last whole line ends, the last `kind` between `start` and there); reads blocks from the end."""
    mark, tail, whole = f'"type":"{kind.type}"'.encode(), b"", start
    at = end
    while at > start and len(tail) < _LONGEST:
        low = max(start, at - max(_BLOCK, len(tail)))
        file.seek(low)
        block = file.read(at - low) + tail
        if whole == start:  # the last line may not be whole yet
            last = block.rfind(b"\n") + 1
            if not last and low > start:
                tail, at = block, low
                continue
            whole, block = (low + last if last else start), block[:last]
        first = 0 if low == start else block.find(b"\n") + 1
        if low == start or first:
            event = _in_lines(block[first:], mark, kind)
            if event is not None:
                return whole, event
            tail = block[:first]
        else:
            tail = block
        at = low
    return whole, None


def _in_lines(lines: bytes, mark: bytes, kind: type[Any]) -> Any:
    at = len(lines)
    while (at := lines.rfind(mark, 0, at)) >= 0:
        begin, finish = lines.rfind(b"\n", 0, at) + 1, lines.find(b"\n", at)
        try:
            event = events.from_line(lines[begin : finish if finish >= 0 else len(lines)])
        except (ValueError, TypeError):
            continue
        if isinstance(event, kind):
            return event
    return None


class Pump:
    """Tells listeners what is new in a log, at most four times a second each (what a wish led to: at once), from one
    thread.

    Args:
        path: of ``events.jsonl``.
        alive: whether the run still works; when it does not, the thread tells the last events and ends.
        name: the thread's.
    """

    def __init__(self, path: Path, alive: Callable[[], bool], name: str) -> None:
        self._path, self._alive, self._name = path, alive, name
        self._listeners: dict[object, tuple[Callable[[list[events.Event], int], None], Follower]] = {}
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self._wished, self._soon = threading.Event(), 0.0

    def expect(self) -> None:
        """Tell a new state, for some seconds, as soon as it is there: somebody has just wished something."""
        self._soon = time.monotonic() + _SOON
        self._wished.set()

    def add(self, callback: Callable[[list[events.Event], int], None], start: int) -> Callable[[], None]:
        """Add a listener; the past from `start` on comes first. Return a function that takes it away."""
        key, follower = object(), Follower(self._path, start)
        with self._guard:
            self._listeners[key] = callback, follower
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

        def remove() -> None:
            self._listeners.pop(key, None)

        return remove

    def _work(self) -> None:
        due, news = time.monotonic(), False
        while True:
            alive = news or self._alive()  # a run that has just said something need not be asked
            news = False
            for key, (callback, follower) in list(self._listeners.items()):
                news = self._tell(key, callback, follower) or news
            with self._guard:
                if not self._listeners or not alive:
                    self._thread = None
                    return
            # A schedule, not a pause: with pauses, events that come four times a second would be told later and later.
            now = time.monotonic()
            due = max(due + _EVERY, now + 0.8 * _EVERY)
            self._await_news(due - now)

    def _tell(self, key: object, callback: Callable[[list[events.Event], int], None], follower: Follower) -> bool:
        """Tell what is new; True if there was something."""
        something_told = False
        while key in self._listeners and follower.behind():
            first = follower.mark
            new = follower.read()
            if not new:
                break
            something_told = True
            try:
                callback(new, _Told(first, follower.mark))
            except Exception:  # noqa: BLE001 — one broken panel must not silence the others
                self._listeners.pop(key, None)
        return something_told

    def _await_news(self, seconds: float) -> None:
        """Wait so long, and then until there is something new or somebody else listens, at most another second."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            hurried = time.monotonic() < self._soon
            if hurried and any(follower.state_ahead() for _, follower in list(self._listeners.values())):
                return
            self._wished.wait(min(left, _LOOK) if hurried else left)
            self._wished.clear()
        listeners = len(self._listeners)
        for _ in range(round(1 / _LOOK)):
            if len(self._listeners) != listeners or any(f.behind() for _, f in list(self._listeners.values())):
                return
            time.sleep(_LOOK)


class _Told(Mark):
    """The mark of the first event that is told; `behind` is the one after the last."""

    behind: Mark

    def __new__(cls, first: Mark, behind: Mark) -> _Told:
        made: Any = super().__new__(cls, int(first), first.offset)
        made.behind = behind
        return made  # type: ignore[no-any-return]


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
        self._fd = open_to_append(path)
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


def add_event(folder: Path, event: events.Event) -> None:
    """Add an event to a run's log that is not its engine's: an export that began, ended or failed.

    A folder that cannot be written, or whose disk is full, is a source all the same: then nothing is written down.

    Raises:
        TrainError: a newer nbtune made the folder.
    """
    refuse_newer(folder)
    try:
        writer = EventWriter(folder / "events.jsonl", owner=False)
    except OSError as error:
        if error.errno in (*DISK_ERRORS, errno.ELOOP, errno.ENXIO, errno.EINVAL):  # no file: a link, a pipe
            return
        raise
    try:
        writer(event)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
    finally:
        writer.close()


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
        self._follower, self._lock = Follower(path), threading.Lock()
        self.events: list[events.Event] = []

    def behind(self) -> bool:
        """Return whether the file has grown since the last `read`; costs a look at its size."""
        return self._follower.behind()

    def read(self) -> list[events.Event]:
        """Take in what is new, and return all events (a list that only grows: do not change it)."""
        with self._lock:
            while new := self._follower.read():
                self.events += new
            return self.events
