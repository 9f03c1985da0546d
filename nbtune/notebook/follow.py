"""Shows a run below its cell, and stays there until it has ended where nobody's page looks on.

Below the cell: the monitor (a widget, gone with its kernel), a report without any widget that is filled in when the run
ends, and a line that says where the run is and becomes the snippet that uses the model.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from IPython.display import display

from nbtune.errors import NbtuneError
from nbtune.events import ENDED, Event
from nbtune.notebook import front
from nbtune.notebook.show import Note, failure, say
from nbtune.progress import Progress

__all__ = ["follow", "show_ended"]

_EVERY = 0.5  # seconds between two updates of the waiting line
_released: set[str] = set()  # ids of the runs whose cell was released by a first interrupt


def follow(run: Any, shell: Any, *, asked: bool = False, setting: str = "auto") -> None:
    """Shows a run, and stays until it has ended where `front.reason_to_wait` has a reason.

    Raises:
        NbtuneError: the cell stayed and the run failed.
    """
    why = front.reason_to_wait(shell, asked=asked, setting=setting)
    sink = _Output(run, front.has_page(shell)) if front.in_kernel(shell) else _Terminal(run)
    if not why:
        sink.line(
            f"{run.name} trains in the background: `run` is its handle, {run.folder.name}/ has its files.\n"
            f"Stop and save: %nbtune stop {run.name}"
        )
        sink.end_later()
        return
    sink.line(f"{run.name}: this cell waits ({why}); interrupt it to let the run go on in the background")
    try:
        _wait(run, sink)
    except KeyboardInterrupt:
        sink.line(_on_interrupt(run, shell))
        sink.end_later()
        return
    except NbtuneError:
        sink.close()
        raise
    sink.end()


def show_ended(run: Any) -> None:
    """What stays of a run that has ended: its figures, a picture, and the lines that use the model."""
    from nbtune.widgets.static_report import Picture, Report

    report = Report(run)
    display(report, Picture(report))
    display(_last_word(run))


def _last_word(run: Any) -> Note:
    """The snippet that uses the model, or what the run failed of."""
    error = run.error
    if error is not None:
        return failure(error)
    if run.state == "finished":
        return Note(f"{run.snippet()}\n\n# GGUF for llama.cpp and Ollama: %nbtune export {run.name} --gguf q8_0")
    return Note(f"{run.name} is {run.state} at step {run.step}; `%nbtune resume {run.name}` goes on.")


def _wait(run: Any, sink: _Output | _Terminal) -> None:
    """Keeps the main thread until the run has ended, with a line that moves."""
    progress, changed = Progress(), threading.Event()

    def take(events: list[Event], first: int) -> None:
        progress.add(events)
        changed.set()

    unsubscribe = run.subscribe(take)
    try:
        said = 0.0
        while run.alive:
            changed.wait(_EVERY)
            changed.clear()
            if time.monotonic() - said >= _EVERY:
                said = time.monotonic()
                sink.line(f"{run.name}: {progress.line()}")
        run.wait()
    finally:
        unsubscribe()


def _on_interrupt(run: Any, shell: Any) -> str:
    """The first interrupt releases the cell, the second stops the run and saves it; says which it was."""
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
    """In a kernel: the panels of `nbtune.widgets`, and one line of text below them that is updated in place."""

    def __init__(self, run: Any, live: bool) -> None:
        from nbtune.widgets.display import Shown

        self.run = run
        self._shown = Shown(run, live=live)
        self._line = display(Note(""), display_id=True)

    def line(self, text: str) -> None:
        self._line.update(Note(text))

    def end(self) -> None:
        self._shown.settle()
        self._line.update(_last_word(self.run))

    def close(self) -> None:
        """The run failed and the cell raises what it failed of."""
        self._shown.settle()
        self._line.update(Note(f"{self.run.name} failed at step {self.run.step}"))

    def end_later(self) -> None:
        threading.Thread(target=self._end_when_over, name=f"nbtune-line-{self.run.name}", daemon=True).start()

    def _end_when_over(self) -> None:
        with contextlib.suppress(NbtuneError):  # said by _last_word
            self.run.wait()
        self._line.update(_last_word(self.run))


class _Terminal:
    """In a terminal: one line by rich."""

    def __init__(self, run: Any) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self.run = run
        self._text: Callable[[str], Any] = Text
        self._live = Live(Text(""), console=Console(file=sys.stdout), refresh_per_second=4)
        self._live.start()

    def line(self, text: str) -> None:
        self._live.update(self._text(text))

    def close(self) -> None:
        self._live.stop()

    end_later = close

    def end(self) -> None:
        self._live.stop()
        say(_last_word(self.run).text)
