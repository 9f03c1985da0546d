"""A run as a cell's value: where it stands, and the lines that come next. Text without any widget."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nbtune.events import ENDED, Step
from nbtune.store.run_reader import RunReader
from nbtune.untrusted import from_here
from nbtune.widgets.sanitize import clean


def card(run: RunReader, latest: Step | None) -> str:
    """Return HTML of a run's name, its state and latest step, its folder, and what a person may do with it now."""
    state, rows = _found(run, latest)
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(text)}</td></tr>"
        for name, text in rows
    )
    calls = " · ".join(f"<code>{escape(call)}</code>" for call in next_calls(state))
    return f"<div><b>Run {escape(clean(run.name, 200))}</b><table>{cells}</table><p>Next: {calls}</p></div>"


def words(run: RunReader, latest: Step | None) -> str:
    """Return the same as lines of text."""
    state, rows = _found(run, latest)
    rows = [*rows, ("Next", " · ".join(next_calls(state)))]
    return "\n".join([f"Run {clean(run.name, 200)}", *(f"  {name}: {text}" for name, text in rows)])


def _found(run: RunReader, latest: Step | None) -> tuple[str, list[tuple[str, str]]]:
    state, facts = run.state, [run.state]
    if latest is not None:
        facts += [f"step {latest.step:,} of {run.total_steps:,}", f"loss {latest.loss:.4g}"]
    rows = [("Where it stands", " · ".join(facts)), ("Folder", f"{clean(from_here(run.folder), 400)}/")]
    if run.error is not None:
        rows.append(("Why", clean(str(run.error), 600)))
    return state, rows


def next_calls(state: str) -> list[str]:
    """Return the lines of Python that make sense in a state."""
    if state not in ENDED:
        return ["run.monitor()", "run.pause()", "run.stop()", "run.wait()"]
    if state == "finished":
        return ["run.chat()", 'run.export.gguf("q8_0")', "run.history", "run.monitor()"]
    return ["run.resume()", "run.history", "run.monitor()"]


def as_text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines, each column as wide as it needs to be.

    >>> print(as_text(("a", "b"), [("long", "x")]))
    a     b
    long  x
    """
    lines = [columns, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def as_html(columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """Return a table; cells are text, never markup."""
    left = "style='text-align:left'"
    head = "".join(f"<th scope='col' {left}>{escape(column)}</th>" for column in columns)
    lines = ("".join(f"<td {left}>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    title = f"<caption {left}>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
