"""Threads that work with torch leave off before the interpreter ends: within a step its own threads would abort it."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable

_PATIENCE = 10.0  # seconds for each
_WORKING: weakref.WeakKeyDictionary[threading.Thread, Callable[[], object]] = weakref.WeakKeyDictionary()


def before_exit(thread: threading.Thread, stop: Callable[[], object]) -> None:
    """Call `stop`, and wait for the thread, if it still works when the interpreter ends.

    >>> from threading import Event, Thread
    >>> from nbtune.leaving_off import before_exit
    >>> over = Event()
    >>> before_exit(Thread(target=over.wait, daemon=True), over.set)

    Args:
        stop: asks the thread to leave off soon, and waits for nothing.
    """
    _WORKING[thread] = stop


def _at_exit() -> None:
    working = [(thread, stop) for thread, stop in list(_WORKING.items()) if thread.is_alive()]
    for _, stop in working:
        stop()
    for thread, _ in working:
        thread.join(_PATIENCE)


atexit.register(_at_exit)
