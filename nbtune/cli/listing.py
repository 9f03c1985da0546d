"""What is said of a run among others, and of a folder that cannot be shown among them."""

from __future__ import annotations

from typing import Any

from nbtune.cli.output import result, say, shown, table
from nbtune.progress import Progress
from nbtune.store.run_reader import readable


def list_runs(runs: list[Any], *, as_json: bool) -> None:
    """Print a table (a line each with `as_json`); a folder that cannot be read is named on stderr, and the others go
    on."""
    rows = []
    for run in runs:
        facts, trouble = readable(run, run_facts if as_json else _line)
        if trouble:
            say(f"{shown(run.folder)} cannot be read: {trouble}")
            facts = {"name": run.name, "id": run.id, "state": "unreadable", "trouble": trouble}
        if as_json:
            result(facts, as_json=True, text="")
        elif not trouble:
            rows.append(facts)
    if not as_json:
        text = table(("name", "id", "state", "step", "folder"), rows) if rows else "no runs yet"
        result({}, as_json=False, text=text)


def run_facts(run: Any) -> dict[str, Any]:
    """Return what `--json` says of a run."""
    progress = Progress()
    progress.add(run.events())
    adapter = run.folder / "adapter"
    return {
        "name": run.name,
        "id": run.id,
        "state": run.state,
        "step": run.step,
        "total_steps": run.total_steps,
        "first_loss": progress.first_loss,
        "loss": progress.loss,
        "eval_loss": progress.eval_loss,
        "folder": shown(run.folder),
        "adapter": shown(adapter) if adapter.is_dir() else None,
    }


def _line(run: Any) -> tuple[str, ...]:
    """Return what the table of runs says of one."""
    return run.name, run.id, run.state, f"{run.step}/{run.total_steps or '?'}", shown(run.folder)


def losses_table(runs: list[Any]) -> str:
    """Return where runs stand beside each other."""
    rows = []
    for run in runs:
        facts = run_facts(run)
        losses = [facts[name] for name in ("first_loss", "loss", "eval_loss")]
        rows.append((run.name, run.state, f"{run.step:,}", *("" if loss is None else f"{loss:.4f}" for loss in losses)))
    return table(("name", "state", "step", "first loss", "loss", "held-out loss"), rows)
