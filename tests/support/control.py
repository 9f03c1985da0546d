"""A control whose wishes a test sets."""

from __future__ import annotations

import threading
from dataclasses import replace

from nbtune.train.control import Wishes


class MemoryControl:
    """Wishes within one process, as `nbtune.train.control.Control` says them."""

    def __init__(self) -> None:
        self._wishes, self._changed = Wishes(), threading.Condition()

    def wish(self, **changes: object) -> None:
        """Change some of the wishes, for example ``wish(mode="stop")``."""
        with self._changed:
            self._wishes = replace(self._wishes, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()

    def look(self) -> Wishes:
        """See `Control.look`."""
        return self._wishes

    def wait(self, seconds: float) -> None:
        """See `Control.wait`."""
        with self._changed:
            self._changed.wait(seconds)
