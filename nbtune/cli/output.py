"""Results on stdout, everything else on stderr, and what an exception means for the exit code."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import traceback as tracebacks
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbtune.disk import FULL, disk_error
from nbtune.errors import DataError, ExportError, NbtuneError, PlanError, SpecError
from nbtune.progress import Progress
from nbtune.untrusted import harmless
from nbtune.widgets.html import as_text

_WRONG = (SpecError, DataError, PlanError)  # of the request; the others are of the work


class WrongRequest(Exception):
    """An error of nbtune that came while the request was read: exit 2 whatever its class."""


@contextlib.contextmanager
def request() -> Iterator[None]:
    """Treat what fails in here as wrong in the request."""
    try:
        yield
    except NbtuneError as error:
        raise WrongRequest from error


@contextlib.contextmanager
def work() -> Iterator[None]:
    """Send what a library prints in here to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def explain(error: BaseException, *, traceback: bool) -> int:
    """Say an error on stderr in a few lines, and return the exit code."""
    wrong = isinstance(error, WrongRequest)
    if wrong and error.__cause__ is not None:
        error = error.__cause__
    if traceback:
        tracebacks.print_exception(error)
    if isinstance(error, OSError) and error.errno in FULL:  # whatever wrote: it is the disk's, no bug
        error = disk_error(error, ExportError, place=str(error.filename or ""))
    if isinstance(error, NbtuneError):
        say(f"nbtune: {error}")
    else:
        lines = str(error).strip().splitlines()[:2] or [""]
        say(f"nbtune: {type(error).__name__}: {' '.join(lines)[:400]}")
        if not traceback:
            say("  → this looks like a bug: `--traceback` says more")
    return 2 if wrong or isinstance(error, _WRONG) else 1


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    print(harmless(text), file=sys.stderr, flush=True)


def result(body: Mapping[str, Any], *, as_json: bool, text: str) -> None:
    """Print one result: a JSON line, or a text for people."""
    print(harmless(json.dumps(_plain(body), ensure_ascii=False, allow_nan=False) if as_json else text), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    return value if isinstance(value, str | int | bool | None) else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows under column names, as wide as they need to be."""
    return as_text(columns, [[harmless(cell, line=True) for cell in row] for row in rows])


def shown(path: Path) -> str:
    """Return a path as people write it from here."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return harmless(path, line=True)


def watch_losses(measured: Any) -> None:
    """Say on stderr how far a measuring is, until it is done; Ctrl-C ends it, and what is measured stays.

    Raises:
        NbtuneError: what it failed of.
    """
    try:
        while measured.busy:
            say(measured.said())
            measured.wait(5.0)
        measured.wait()
    except KeyboardInterrupt:
        measured.stop()
        measured.wait()


@contextlib.contextmanager
def following(run: Any, *, quiet: bool = False) -> Iterator[Progress]:
    """Show a moving line on stderr while in here (a line now and then where stderr is no terminal, none if `quiet`);
    warnings are said."""
    progress = Progress()
    line = _Quiet() if quiet else _Line() if sys.stderr.isatty() else _Lines()

    seen, turn = 0, threading.Lock()

    def take(events: Any, first: int) -> None:
        nonlocal seen
        with turn:
            events = events[max(0, seen - first) :]  # a late call of the pump brings what is known
            seen += len(events)
            warned = len(progress.warnings)
            progress.add(events)
            for warning in progress.warnings[warned:]:
                fix = f"\n  → {warning.fix}" if warning.fix else ""
                line.say(f"warning: {warning.message}{fix}")
            line.show(f"{run.name}: {progress.line()}", progress)

    unsubscribe = run.subscribe(take)
    try:
        yield progress
    finally:
        unsubscribe()
        take(run.events(), 0)  # what came after the last look
        line.close()


class _Line:
    """A progress bar by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        text = TextColumn("{task.description}", table_column=Column(ratio=3), markup=False)
        self._bar = Bar(BarColumn(bar_width=24), text, console=Console(file=sys.stderr), refresh_per_second=4)
        self._task = self._bar.add_task("starting", total=None)
        self._bar.start()

    def show(self, text: str, progress: Progress) -> None:
        total = progress.total_steps or None
        self._bar.update(self._task, description=harmless(text), completed=progress.step, total=total)

    def say(self, text: str) -> None:
        self._bar.console.print(harmless(text), markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


class _Quiet:
    """Warnings alone."""

    def show(self, text: str, progress: Progress) -> None:
        pass

    def say(self, text: str) -> None:
        say(text)

    def close(self) -> None:
        pass


class _Lines:
    """For a log file: a line at each change of state, each tenth of the way, and every half minute."""

    def __init__(self) -> None:
        self._said: tuple[str, int, int] = ("", -1, 0)

    def show(self, text: str, progress: Progress) -> None:
        tenth = 10 * progress.step // progress.total_steps if progress.total_steps else 0
        now = (progress.state, tenth, int(time.monotonic() / 30))
        if now != self._said:
            self._said = now
            say(text)

    def say(self, text: str) -> None:
        say(text)

    def close(self) -> None:
        pass
