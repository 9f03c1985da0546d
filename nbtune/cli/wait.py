"""Waiting for a run, and what is said at its end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import typer

from nbtune.cli.listing import run_facts
from nbtune.cli.output import following, result, say
from nbtune.events import ENDED, State, Warning


def until_ended(run: Any, *, quiet: bool = False) -> None:
    """Wait for a run of this process; Ctrl-C, a SIGTERM of a scheduler, or a SIGHUP (the terminal was closed) stops it
    and saves.
    """
    with _interrupting(), contextlib.ExitStack() as stack:
        try:  # the first word is said while `following` begins: an interrupt may come before it has returned
            stack.enter_context(following(run, quiet=quiet))
            run.wait()
        except KeyboardInterrupt:
            try:  # the second may come as soon as this is said
                say(f"stopping and saving {run.name}; once more to leave now")
                run.stop()
                run.wait()
            except KeyboardInterrupt:
                _leave(run.name)


def _leave(name: str) -> None:
    """End this process at once: its thread is within a step, and torch's own threads abort an interpreter that ends
    around them."""
    say(f"left {name}\n  → `nbtune resume {name}` goes on from its last checkpoint")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


@contextlib.contextmanager
def _interrupting() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, while in here, interrupt as Ctrl-C does; a SIGHUP that is ignored (`nohup`) stays so."""
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler)}
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        before[hangup] = signal.signal(hangup, _hung_up([fd for fd in (1, 2) if os.isatty(fd)]))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hung_up(terminals: list[int]) -> Any:
    """Return what a SIGHUP does: shell and system both send one, and nothing can be written to a
    terminal that is gone."""

    def interrupt(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for terminal in terminals:
            os.dup2(nowhere, terminal)
        os.close(nowhere)
        raise KeyboardInterrupt

    return interrupt


def until_begun(run: Any) -> None:
    """Wait until a detached run has said its first word: from then on it needs nobody."""
    seen, begun = len(run.events()), threading.Event()
    unsubscribe = run.subscribe(lambda events, first: begun.set(), seen)
    while run.alive and not begun.wait(0.5):
        continue
    unsubscribe()


def done(run: Any, as_json: bool, *, detached: bool = False, quiet: bool = False) -> None:
    """Say how a run ended, and what next.

    Raises:
        typer.Exit: with 1, if it did not come to its end.
    """
    facts = run_facts(run)
    text = f"{run.name} is {run.state} at step {run.step}/{run.total_steps}: {facts['adapter'] or facts['folder']}"
    result(facts, as_json=as_json, text=text)
    if run.state == "finished":
        if not (as_json or quiet):
            say(run.snippet())
    elif detached and run.state not in ENDED:
        say(f"  → `nbtune attach {run.name}` watches it, `nbtune stop {run.name}` stops and saves")
    else:
        say(f"  → `nbtune resume {run.name}` goes on")
        raise typer.Exit(1)


def submitted(run: Any, as_json: bool, *, sent: bool = True) -> None:
    """Say where a run is that was given to Slurm.

    Raises:
        typer.Exit: if it waits for somebody to send it; with 1, if that was not asked for.
    """
    detail = run.latest(State).detail
    for warning in (event for event in run.events() if isinstance(event, Warning)):
        say(warning.message)
    result(run_facts(run), as_json=as_json, text=f"{run.name} is {run.state}: {detail}")
    if run.state in ENDED:
        raise typer.Exit(1 if sent else 0)
    say(f"  → `nbtune attach {run.name}` watches it, `nbtune stop {run.name}` stops and saves")
