"""A run's view that is kept up to date: what happened so far from its columns and its log, then what is new."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nbtune.events import ENDED, Event
from nbtune.store.event_log import Mark
from nbtune.store.run_handle import RunHandle
from nbtune.store.run_reader import RunReader
from nbtune.widgets.metrics_on_disk import Columns
from nbtune.widgets.run_state import RunView

__all__ = ["Watched"]


class Watched:
    """`view` knows all that the run has said when this was made; after `listen`, also what it says later.

    Args:
        run: the run; of a long one its columns are kept in its folder.
    """

    def __init__(self, run: RunReader | RunHandle) -> None:
        self.run = run
        self._taking = threading.RLock()
        self._remove: Callable[[], None] = lambda: None
        self.columns = Columns(run.folder)
        self.view, self.mark = RunView(run, self.columns), Mark(0)
        if not self._restored():
            self.columns.reset()
            self.view, self.mark = RunView(run, self.columns), Mark(0)
        self.catch_up()

    def _restored(self) -> bool:
        """Whether what was kept of the log could be taken up again; anybody may have written it."""
        try:
            state = self.columns.load()
            if state is None or not _belongs(state, self.run.folder / "events.jsonl"):
                return False
            self.mark = Mark(state["events"], state["offset"])
            self.view.restore(state)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return False
        return True

    def catch_up(self) -> bool:
        """Takes in what is new now; True if there was something."""
        with self._taking:
            before = int(self.mark)
            for events, mark in self.run.pieces(self.mark):
                self._take(events, mark)
            return int(self.mark) > before

    def listen(self, changed: Callable[[], None]) -> None:
        """From now on takes in what the run says, and calls `changed` after it, at most four times a second."""

        def told(events: Sequence[Event], first: int) -> None:
            with self._taking:
                new = events[max(0, int(self.mark) - int(first)) :]
                if not new:
                    return
                self._take(new, getattr(first, "behind", Mark(int(first) + len(events))))
            changed()

        self._remove()
        self._remove = self.run.subscribe(told, self.mark)

    def rest(self) -> None:
        """Listens no more, until `listen` is called again; what was said meanwhile is taken in then."""
        self._remove()

    def _take(self, events: Sequence[Event], mark: Mark) -> None:
        self.view.add(events)
        self.mark = mark
        if mark.offset is not None:
            state = lambda: {**self.view.dump(), "events": int(mark), "offset": mark.offset}  # noqa: E731
            self.columns.save(state, all_of_it=self.view.last.state in ENDED)

    def close(self) -> None:
        """Stops listening; another one may write the columns."""
        self._remove()
        self.columns.close()


def _belongs(state: dict[str, Any], log: Path) -> bool:
    """The columns were made of this log: it is at least as long, and a line ends where they stopped."""
    try:
        with log.open("rb") as file:
            file.seek(state["offset"] - 1)
            return file.read(1) == b"\n"
    except (OSError, KeyError, ValueError):
        return False
