"""What a worker does when nobody waits for it any more: it stops, saves and ends.

A worker that was not detached ends with the process that has started it, however that one ended (`kill -9`, out of
memory): it would hold the device with nobody who knows. A hang-up (SIGHUP) of any worker is a wish to stop, too.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

from nbtune import events
from nbtune.child_process import end_with_parent
from nbtune.errors import NbtuneError
from nbtune.store import control
from nbtune.store.event_log import Latest

WITH_PARENT = "--with-parent"  # on a worker's command line: its standard input is a pipe from who has started it

_LONGEST = 120.0  # seconds in which a run may stop and save (full weights on a slow disk); then it ends all the same


def stop_with_parent(folder: Path) -> None:
    """Stop the run, save it and end this process when the one that has started it is gone."""
    end_with_parent(code=1, first=lambda: _stop(folder))


def _stop(folder: Path) -> None:
    last = Latest(folder / "events.jsonl").of(events.State)
    if last is None or last.state in ("queued", "preparing"):
        return  # nothing new to save, and it may take minutes until it looks at a wish
    _wish_stop(folder)
    time.sleep(_LONGEST)


def stop_on_hangup(folder: Path) -> None:
    """Let a SIGHUP stop and save the run, unless whoever started this process wants it ignored (`nohup`)."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return

    def heed(*_: Any) -> None:  # in a thread: the main one may hold the lock that a wish needs
        threading.Thread(target=_wish_stop, args=(folder,), name="nbtune-hangup", daemon=True).start()

    signal.signal(hangup, heed)


def _wish_stop(folder: Path) -> None:
    with contextlib.suppress(NbtuneError):  # the folder cannot be written, or is gone: the run notices it, too
        control.wish(folder, mode="stop")
