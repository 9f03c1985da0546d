"""Shows a run below its cell, and stays there until it has ended where nobody's page looks on.

Below the cell: the monitor (a widget, gone with its kernel), and a line of text that becomes a report without any
widget when the run ends, so that the saved notebook holds it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from typing import Any

from IPython.display import display

from nbtune.errors import NbtuneError
from nbtune.events import ENDED, Event
from nbtune.notebook import environment
from nbtune.notebook.display import Note, say
from nbtune.progress import Progress
from nbtune.untrusted import from_here
from nbtune.widgets.comm_pump import Pump

_EVERY = 0.5  # seconds between two updates of the waiting line
_PUMP_EVERY = 0.1  # seconds until a click is heard by a waiting cell
_released: set[str] = set()  # ids of the runs whose cell was released by a first interrupt


def follow(run: Any, shell: Any, *, asked: bool = False, setting: str = "auto") -> None:
    """Show a run, and stay until it has ended where `front.reason_to_wait` has a reason.

    Raises:
        NbtuneError: the cell stayed and the run failed.
    """
    why = environment.reason_to_wait(shell, asked=asked, setting=setting)
    sink = _Output(run, environment.has_page(shell)) if environment.in_kernel(shell) else _Terminal(run)
    if not why:
        sink.line(
            f"{run.name} trains in the background: `run` is its handle, {from_here(run.folder)}/ has its files.\n"
            f"Stop and save: %nbtune stop {run.name}"
        )
        sink.end_later()
        return
    sink.line(f"{run.name}: this cell waits ({why}); interrupt it to let the run go on in the background")
    try:
        _wait(run, sink, Pump(shell))
    except KeyboardInterrupt:
        sink.line(_on_interrupt(run, shell))
        sink.end_later()
        return
    except NbtuneError:
        sink.close()
        raise
    sink.end()


def show_ended(run: Any, shell: Any = None) -> None:
    """Show what stays of a run that has ended: its figures, a picture, and the lines that use the model.

    Where a page looks on its monitor comes first, whose buttons resume and export it.
    """
    from nbtune.widgets import report

    if shell is not None and environment.has_page(shell):
        _show_monitor(run)
    display(report(run))


def _wait(run: Any, sink: _Output | _Terminal, pump: Pump) -> None:
    """Keep the main thread until the run has ended, with a line that moves and buttons that work."""
    progress, changed = Progress(), threading.Event()

    def take(events: list[Event], first: int) -> None:
        progress.add(events)
        changed.set()

    unsubscribe = run.subscribe(take)
    try:
        said, when = "", 0.0
        while run.alive:
            changed.wait(_PUMP_EVERY if pump.works else _EVERY)
            changed.clear()
            pump()
            line = f"{run.name}: {progress.line()}"
            if line != said and time.monotonic() - when >= _EVERY:
                said, when = line, time.monotonic()
                sink.line(line)
        run.wait()
    finally:
        unsubscribe()


def _on_interrupt(run: Any, shell: Any) -> str:
    """Release the cell at the first interrupt; stop and save the run at the second; return what to say."""
    if run.id in _released:
        _released.discard(run.id)
        run.stop()
        return f"{run.name} stops at its next step and is saved; `%nbtune resume {run.name}` goes on."
    _released.add(run.id)
    _stop_on_next_interrupt(run, shell)
    return (
        f"{run.name} goes on in the background. Interrupt once more, or `%nbtune stop {run.name}`, to stop and save it;"
        f" `%nbtune attach {run.name} --wait` waits again."
    )


def _stop_on_next_interrupt(run: Any, shell: Any) -> None:
    """Let the next interrupt stop the run until it has ended: an idle kernel ignores interrupts."""
    kernel: Any = getattr(shell, "kernel", None)
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
    """In a kernel: the monitor where a page shows it, and below it a line of text that becomes the report.

    The second output holds no widget: without its kernel a widget shows an error only. After a reload the page does not
    know it any more until the cell runs again, or `%nbtune attach`: the monitor has the end, too.
    """

    def __init__(self, run: Any, live: bool) -> None:
        self.run = run
        if live:
            _show_monitor(run)
        self._below = display(Note(""), display_id=True)

    def line(self, text: str) -> None:
        self._below.update(Note(text))

    def end(self) -> None:
        from nbtune.widgets import report

        self._below.update(report(self.run))

    close = end

    def end_later(self) -> None:
        threading.Thread(target=self._end_when_over, name=f"nbtune-report-{self.run.name}", daemon=True).start()

    def _end_when_over(self) -> None:
        with contextlib.suppress(NbtuneError):  # the report says what it failed of
            self.run.wait()
        self.end()


def _show_monitor(run: Any) -> None:
    try:
        display(run.monitor())
    except ImportError as error:
        say(f"no live chart: {error.name or 'anywidget'} is not in this kernel's environment; see `%nbtune doctor`")


class _Terminal:
    """In a terminal: one line by rich that moves; the first line only where it is no terminal but a file."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self._live: Any = None
        self._said = False

    def line(self, text: str) -> None:
        if not sys.stdout.isatty():
            if not self._said:
                say(text)
            self._said = True
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=Console(file=sys.stdout), refresh_per_second=4)
            self._live.start()
        self._live.update(Text(text))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def end_later(self) -> None:
        self.close()

    def end(self) -> None:
        self.close()
        show_ended(self.run)
