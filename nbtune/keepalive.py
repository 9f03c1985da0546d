"""A sign of life while a run works in this kernel.

A hub that ends idle kernels counts messages, and a run's thread sends none.

The message updates a display that no page knows: front-ends pass it over, servers count it. A detached run needs no
kernel, so nothing is sent for it; when the last run has ended, so has the thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_LOOK = 0.5  # seconds between looks whether a run still lives
_DISPLAY = "nbtune-is-at-work"  # no output has this id


class Heartbeat:
    """Beats while runs live that would end with the kernel.

    Args:
        shell: IPython's, in a kernel.
        seconds: asked before each beat; 0 or less: none is sent.
        needed: whether a run lives that would end with the kernel (`nbtune.engine.launcher.kernel_is_needed`).
        starts: what is called when a run starts, however it is started (`nbtune.engine.launcher.on_launch`).
    """

    def __init__(
        self,
        shell: Any,
        seconds: Callable[[], float],
        *,
        needed: Callable[[], bool],
        starts: list[Callable[[], None]],
    ) -> None:
        self._kernel: Any = getattr(shell, "kernel", None)
        self._needed, self._starts = needed, starts
        self._seconds, self._over, self._guard = seconds, threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def register(self) -> None:
        """Start to beat when a run starts, however it is started."""
        if self._kernel is not None:
            self._starts.append(self.start)

    def unregister(self) -> None:
        """Beat no more."""
        if self.start in self._starts:
            self._starts.remove(self.start)
        self._over.set()

    def start(self) -> None:
        """Beat, unless it beats already."""
        with self._guard:
            if self._thread is None or not self._thread.is_alive():
                self._over.clear()
                self._thread = threading.Thread(target=self._beat, name="nbtune-heartbeat", daemon=True)
                self._thread.start()

    def _beat(self) -> None:
        since = 0.0
        while not self._over.wait(_LOOK):
            with self._guard:
                if not self._needed():
                    self._thread = None
                    return
            since += _LOOK
            if 0 < self._seconds() <= since:
                since = 0.0
                self._send()

    def _send(self) -> None:
        content = {"data": {"text/plain": ""}, "metadata": {}, "transient": {"display_id": _DISPLAY}}
        self._kernel.session.send(self._kernel.iopub_socket, "update_display_data", content)


class Heart:
    """`seconds` between two signs; 0 or less: none is sent."""

    seconds: float = 10.0


heart = Heart()
