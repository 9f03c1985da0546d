"""What a cell shows: text and HTML of the same words, so that it reads everywhere. All text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from IPython.display import display

from nbtune.progress import Progress
from nbtune.store.run_reader import readable
from nbtune.untrusted import from_here, harmless
from nbtune.widgets.html import as_html, as_text


class Note:
    """Some lines of text, shown as they are."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre style='margin:0;white-space:pre-wrap;font-family:monospace'>{html.escape(self.text)}</pre>"


def say(text: str) -> None:
    """Show some lines."""
    display(Note(text))


def show_plan(plan: Any) -> None:
    """Show a plan as its table."""
    display({"text/plain": plan.explain(), "text/html": plan._repr_html_()}, raw=True)


class Table:
    """Rows under column names."""

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
        self.columns = list(columns)
        self.rows = [[str(cell) for cell in row] for row in rows]
        self.empty = empty

    def __repr__(self) -> str:
        if not self.rows:
            return self.empty
        return as_text(self.columns, self.rows)

    def _repr_html_(self) -> str:
        if not self.rows:
            return html.escape(self.empty)
        return as_html(self.columns, self.rows)


def runs_table(runs: Iterable[Any]) -> Table:
    """Name, state, step and folder of each run."""
    rows = []
    for run in runs:
        facts, trouble = readable(run, _facts)
        name, where = harmless(run.name, line=True), harmless(from_here(run.folder), line=True)
        state, steps, command = ("cannot be read", "", trouble) if trouble else facts
        rows.append((name, run.id, state, steps, where, command))
    return Table(
        ("name", "id", "state", "step", "folder", "next"),
        rows,
        empty="No runs yet: `%finetune` shows how to start one.",
    )


def _facts(run: Any) -> tuple[str, str, str]:
    state, steps = run.state, f"{run.step:,}/{run.total_steps:,}" if run.total_steps else ""
    return state, steps, _next_command(run, state)


def _next_command(run: Any, state: str) -> str:
    """Return what one mostly wants of a run in this state."""
    if state in ("stopped", "interrupted") and run.step:
        return f"%nbtune resume {run.id}"
    if state == "failed":
        return f"%nbtune attach {run.id}"
    return f"%nbtune chat {run.id}" if state == "finished" else ""


def losses_table(runs: Iterable[Any]) -> Table:
    """Return where runs stand beside each other, without a chart."""
    rows = []
    for run in runs:
        progress = Progress()
        progress.add(run.events())
        losses = [f"{loss:.4f}" if loss is not None else "" for loss in (progress.first_loss, progress.loss)]
        evaluated = f"{progress.eval_loss:.4f}" if progress.eval_loss is not None else ""
        rows.append((run.name, run.state, f"{progress.step:,}", *losses, evaluated))
    return Table(("name", "state", "step", "first loss", "loss", "held-out loss"), rows, empty="")
