"""A run in one HTML file that needs no kernel and no network: charts, answers step by step, rows with what was trained.

The file holds what the page is told, as JSON, beside the panels' own module and Plotly. Its policy lets nothing run but
that module, and nothing load: what a run's folder holds is text there, whoever wrote it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import events as ev
from nbtune.atomic_io import write_text
from nbtune.errors import ExportError, NbtuneError
from nbtune.export.model_card import without_paths
from nbtune.store.export_script import as_yaml
from nbtune.widgets.panel import STATIC, asset
from nbtune.widgets.run_report import Report, duration
from nbtune.widgets.sanitize import clean, without_home

if TYPE_CHECKING:
    from nbtune.store.run_handle import RunHandle

MOST_BYTES = 5 * 2**20
_STEPS, _PROMPTS = 40, 8  # of the answers
_TOKENS = 1024  # of a row
_FOLDER = re.compile(
    r"""(['"])(?:~|[A-Za-z]:)?[/\\]+((?:(?!\1).)+?)[/\\]*\1"""
)  # a path of the author's machine, in code

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="nbtune {version}">
<title>{title}</title>
<style>{style}
:root {{ color-scheme: light dark; }}
:root {{ --foreground: #1f1f1f; --background: #ffffff; --border: #d0d0d0; --muted: #f3f3f3; }}
:root {{ --muted-foreground: #5c5c5c; }}
@media (prefers-color-scheme: dark) {{
:root {{ --foreground: #ececec; --background: #161616; --border: #444444; --muted: #262626; }}
:root {{ --muted-foreground: #a8a8a8; }}
}}
body {{ margin: 0; background: var(--background); color: var(--foreground); font: 14px/1.45 system-ui, sans-serif; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 16px; }}
main, #nbtune-replay {{ display: grid; gap: 14px; grid-template-columns: minmax(0, 1fr); }}
h1 {{ font-size: 1.3em; margin: 0; overflow-wrap: anywhere; }}
#nbtune-replay h2 {{ font-size: 1.05em; margin: 0 0 8px; }}
#nbtune-replay > p {{ margin: 0; }}
#nbtune-replay pre {{ margin: 0; max-height: 420px; overflow: auto; }}
</style>
</head>
<body>
<main><h1>{title}</h1><div id="nbtune-replay"><noscript>{words}</noscript></div></main>
<script type="application/json" id="nbtune-kept">{kept}</script>
<script type="text/plain" id="nbtune-plotly">{plotly}</script>
<script type="module">{module}</script>
</body>
</html>
"""


def write_replay(run: RunHandle, path: Path, *, rows: int = 3, losses: bool = True) -> Path:
    """Write the file, see `nbtune.Run.html`; return where it is.

    Args:
        run: the run, as it is now.
        path: of the file.
        rows: so many of its rows are shown as tokens, the first of each source.
        losses: whether those tokens' losses are asked of the model.
    Raises:
        ExportError: it would have more than 5 MB, or cannot be written.
    """
    page = render(kept_of(run, rows=rows, losses=losses), title=f"Run {clean(run.name, 200)}", words=Report(run).title)
    if len(page.encode()) > MOST_BYTES:
        raise ExportError(
            f"the page would have {len(page.encode()) / 2**20:.1f} MB, of at most 5", fix="show fewer rows"
        )
    write_text(path, page)
    return path


def render(kept: dict[str, Any], *, title: str, words: str) -> str:
    """Return the page of what is kept.

    Args:
        kept: see `kept_of`.
        title: of the page.
        words: what stands there where scripts are off.
    """
    from nbtune import __version__

    module = asset("replay.js")
    digest = base64.b64encode(hashlib.sha256(module.encode()).digest()).decode()
    allowed = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}' blob:",
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return _PAGE.format(
        policy="; ".join(f"{name} {value}" for name, value in allowed.items()),
        version=escape(__version__),
        title=escape(title),
        words=escape(words),
        style=asset("panels.css"),
        kept=json.dumps(kept, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        plotly=base64.b64encode((STATIC / "plotly.mjs.gz").read_bytes()).decode(),
        module=module,
    )


def kept_of(run: RunHandle, *, rows: int, losses: bool) -> dict[str, Any]:
    """Return what the page is told: JSON of bounded size, without paths of this machine."""
    report = Report(run)
    picture, steps = report.view.snapshot()
    picture["samples"]["items"] = []  # they have a part of their own
    picture["exports"]["items"] = [item for item in picture["exports"]["items"] if item["done"] >= 1]  # not this one
    picture["status"] |= {"live": False, "beat": 0, "resumable": False, "folder": ""}
    plan = run.plan
    why = "" if plan is None else "\n".join(f"{name}: {value}" for name, value in plan.rows_of_explanation())
    return {
        "snapshot": picture,
        "steps": base64.b64encode(steps).decode(),
        "samples": _samples(run) if rows or run.spec.samples else [],  # else they are held-out rows
        "rows": _rows(run, rows, losses) if rows else [],
        "plan": _planned(report, plan),
        "why": clean(without_home(why), 20_000),
        "spec": clean(without_paths(as_yaml(run.folder)), 20_000),
        "use": _FOLDER.sub(lambda found: found[1] + re.split(r"[/\\]", found[2])[-1] + found[1], report.snippet),
    }


def _samples(run: RunHandle) -> list[dict[str, Any]]:
    """Return answers of at most so many steps, evenly picked, the first and the last among them."""
    said = [event for events, _ in run.pieces() for event in events if isinstance(event, ev.Sample)]
    steps = sorted({sample.step for sample in said})
    if len(steps) > _STEPS:
        steps = [steps[round(k * (len(steps) - 1) / (_STEPS - 1))] for k in range(_STEPS)]
    prompts = list(dict.fromkeys(sample.prompt for sample in said))[:_PROMPTS]
    return [
        {"step": sample.step, "prompt": clean(sample.prompt, 300), "answer": clean(sample.answer, 1200)}
        for sample in said
        if sample.step in steps and sample.prompt in prompts
    ]


def _rows(run: RunHandle, count: int, losses: bool) -> list[dict[str, Any]]:
    """Return some rows as the inspector's page takes them, the first ones of the run's own rows; none where they cannot
    be read any more."""
    from nbtune.widgets.row_inspection import Inspection

    try:
        inspection = Inspection.of(run)
        found = [inspection.row(k) for k in range(min(count, len(inspection)))]
    except NbtuneError:
        return []
    shown: list[dict[str, Any]] = []
    for k, row in enumerate(found):
        tokens = row["tokens"][:_TOKENS]
        if not tokens:
            continue
        more = row.get("more", 0) + len(row["tokens"]) - len(tokens)
        shown.append({"index": k, "place": row["place"], "tokens": tokens, "more": more})
        if losses:
            shown[-1]["losses"] = _losses(run, inspection.ids(k))[:_TOKENS]
    return shown


def _losses(run: RunHandle, ids: Sequence[int]) -> list[float | None]:
    """Return how little a text's tokens were expected; nothing where the model is not there, or tells nothing."""
    try:
        return [None if loss is None or loss != loss else round(float(loss), 3) for loss in run.token_losses(ids)]
    except (NbtuneError, OSError, RuntimeError):
        return []


def _planned(report: Report, plan: Any) -> list[list[str]]:
    """Return lines of a table: what, planned, measured."""
    if plan is None:
        return []
    totals, status = report.view.standing.totals, report.status
    gib = lambda size: f"{size / 2**30:.2f} GiB" if size else "–"  # noqa: E731
    lines = [
        ["Peak memory", gib(plan.peak_bytes), gib(totals.memory)],
        ["Steps", f"{plan.total_steps:,}", f"{status['step']:,}"],
        ["Time of the steps", duration(plan.seconds), duration(totals.seconds)],
    ]
    if totals.seconds:
        lines.append(["Tokens a second", "–", f"{totals.tokens / totals.seconds:,.0f}"])
    return lines
