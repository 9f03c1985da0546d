"""Shows a run below its cell: live, then as a report that stays; in the foreground where nobody's page looks on.

Two outputs: the monitor (a widget, gone with its kernel), and a second one without any widget in it that says where
the run is and becomes its report when the run ends, so that the saved notebook holds it.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from IPython.display import DisplayHandle, display

from nbtune.events import ENDED, Event
from nbtune.notebook import front
from nbtune.notebook.show import Note, failure, say
from nbtune.progress import Progress

__all__ = ["follow", "report"]

_released: set[str] = set()  # ids of runs whose cell was released by a first interrupt


def follow(run: Any, shell: Any, *, asked: bool = False, setting: str = "auto") -> None:
    """Shows a run, and stays until it has ended where `front.reason_to_wait` has a reason.

    Raises:
        NbtuneError: the cell stayed and the run failed.
    """
    why = front.reason_to_wait(shell, asked=asked, setting=setting)
    page = front.has_page(shell)
    if page:
        _show_monitor(run)
    if not why:
        handle = display(Note(_where(run)), display_id=True)
        _report_at_end(run, handle)
        return
    sink = _Output(run, why) if front.in_kernel(shell) else _Terminal(run, why)
    _wait(run, shell, sink)


def report(run: Any) -> Any:
    """What stays in the notebook of a run that has ended: a picture, its figures, and the lines that use the model."""
    from nbtune.widgets import report as static_report

    return static_report(run)


def _show_monitor(run: Any) -> None:
    try:
        panel = run.monitor()
    except ImportError as error:  # no anywidget here: the second output tells the same in words
        display(Note(f"the live chart needs {error.name or 'anywidget'}: run `%nbtune doctor`"))
        return
    display(panel)


def _where(run: Any) -> str:
    return (
        f"{run.name} trains in the background; the handle is `run`, the files are in {run.folder.name}/.\n"
        f"Stop and save: %nbtune stop {run.name}"
    )


def _report_at_end(run: Any, handle: DisplayHandle) -> None:
    """Turns the second output into the report, from a thread of its own: making a picture takes a second."""

    def watch(events: list[Event], first: int) -> None:
        if any(getattr(event, "state", "") in ENDED for event in events):
            threading.Thread(target=_replace, args=(run, handle), name=f"nbtune-report-{run.name}", daemon=True).start()

    run.subscribe(watch)


def _replace(run: Any, handle: DisplayHandle) -> None:
    handle.update(failure(run.error) if run.error is not None else report(run))


def _wait(run: Any, shell: Any, sink: _Output | _Terminal) -> None:
    progress, changed = Progress(), threading.Event()

    def take(events: list[Event], first: int) -> None:
        progress.add(events)
        changed.set()

    unsubscribe = run.subscribe(take)
    try:
        while not (progress.ended or run.state in ENDED):
            changed.wait(0.5)
            changed.clear()
            sink.update(progress)
        run.wait()
    except KeyboardInterrupt:
        sink.release(_on_interrupt(run, shell))
        return
    finally:
        unsubscribe()
        sink.close()
    sink.end()


def _on_interrupt(run: Any, shell: Any) -> str:
    """The first interrupt releases the cell, the second stops the run and saves it; says which it was."""
    if run.id in _released:
        _released.discard(run.id)
        run.stop()
        return f"{run.name} stops at its next step and is saved; `%nbtune resume {run.name}` goes on."
    _released.add(run.id)
    _stop_on_next_interrupt(run, shell)
    return f"{run.name} goes on in the background. Interrupt once more, or `%nbtune stop {run.name}`, to stop and save."


def _stop_on_next_interrupt(run: Any, shell: Any) -> None:
    """An idle kernel ignores interrupts: until the run has ended, the next one stops it."""
    kernel = getattr(shell, "kernel", None)
    before = getattr(kernel, "saved_sigint_handler", None)  # what ipykernel puts back after this cell
    if before is None or threading.current_thread() is not threading.main_thread():
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        if run.id in _released and run.state not in ENDED:
            _released.discard(run.id)
            run.stop()

    kernel.saved_sigint_handler = handle


class _Output:
    """The foreground in a kernel: one output that is updated in place, without any widget."""

    def __init__(self, run: Any, why: str) -> None:
        self.run, self.why = run, why
        self.handle = display(Note(f"{run.name}: waiting, {why}"), display_id=True)
        self._last = 0.0

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= 0.5:
            self._last = now
            self.handle.update(Note(f"{self.run.name}: {progress.line()}"))

    def release(self, text: str) -> None:
        self.handle.update(Note(text))
        _report_at_end(self.run, self.handle)

    def close(self) -> None:
        pass

    def end(self) -> None:
        self.handle.update(report(self.run))


class _Terminal:
    """The foreground in a terminal: a progress line by rich."""

    def __init__(self, run: Any, why: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self.run = run
        self._text: Callable[[str], Any] = Text
        self._live = Live(Text(f"{run.name}: {why}"), console=Console(file=sys.stdout), refresh_per_second=4)
        self._live.start()

    def update(self, progress: Progress) -> None:
        self._live.update(self._text(f"{self.run.name}: {progress.line()}"))

    def release(self, text: str) -> None:
        self._live.update(self._text(text))

    def close(self) -> None:
        self._live.stop()

    def end(self) -> None:
        say(self.run.snippet())
