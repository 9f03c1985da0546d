"""Waiting for a run, and what is said at its end."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any

import typer

from nbtune.cli.listing import run_facts
from nbtune.cli.output import following, result, say
from nbtune.events import ENDED

__all__ = ["done", "until_begun", "until_ended"]


def until_ended(run: Any) -> None:
    """Waits for a run of this process; Ctrl-C, or a SIGTERM of a scheduler, stops it and saves."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            try:  # the first word is said while `following` begins: an interrupt may come before it has returned
                stack.enter_context(following(run))
                run.wait()
            except KeyboardInterrupt:
                say(f"stopping and saving {run.name}; once more to leave now")
                run.stop()
                run.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def until_begun(run: Any) -> None:
    """Waits until a detached run has said its first word: from then on it needs nobody."""
    seen, begun = len(run.events()), threading.Event()
    unsubscribe = run.subscribe(lambda events, first: begun.set(), seen)
    while run.alive and not begun.wait(0.5):
        continue
    unsubscribe()


def done(run: Any, as_json: bool, *, detached: bool = False) -> None:
    """Says how a run ended, and what next.

    Raises:
        typer.Exit: with 1, if it did not come to its end.
    """
    facts = run_facts(run)
    text = f"{run.name} is {run.state} at step {run.step}/{run.total_steps}: {facts['adapter'] or facts['folder']}"
    result(facts, as_json=as_json, text=text)
    if run.state == "finished":
        if not as_json:
            say(run.snippet())
    elif detached and run.state not in ENDED:
        say(f"  → `nbtune attach {run.name}` watches it, `nbtune stop {run.name}` stops and saves")
    else:
        say(f"  → `nbtune resume {run.name}` goes on")
        raise typer.Exit(1)
