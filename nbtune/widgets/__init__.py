"""The panels of a run: live in the notebook's page, and static pictures for everywhere else.

monitor(run)   the live panel (an anywidget)
figure(run)    a Plotly figure of its history
report(run)    a picture and a small HTML report, for nbconvert and GitHub
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from nbtune.engine.run_model import AtStep
    from nbtune.store.run_handle import RunHandle
    from nbtune.store.run_reader import RunReader
    from nbtune.widgets.chat_panel import Chat
    from nbtune.widgets.compare_panel import Compare
    from nbtune.widgets.export_panel import ExportPanel
    from nbtune.widgets.form_panel import Form
    from nbtune.widgets.home_panel import Home
    from nbtune.widgets.inspector_panel import Inspector
    from nbtune.widgets.losses_panel import Losses
    from nbtune.widgets.monitor_panel import Monitor
    from nbtune.widgets.run_report import Report
    from nbtune.widgets.trainer_display import BesideTrainer

__all__ = [
    "beside_trainer",
    "chat",
    "compare",
    "exporter",
    "figure",
    "form",
    "home",
    "inspect",
    "losses",
    "monitor",
    "report",
]


def monitor(run: RunHandle) -> Monitor:
    """Return the live panel of `run`: show it as a cell's last value, or with `display`.

    >>> monitor(nbtune.attach("demo"))
    <Monitor: a panel of nbtune>
    """
    from nbtune.widgets.monitor_panel import Monitor

    return Monitor(run)


def beside_trainer(run: RunHandle) -> BesideTrainer:
    """Show a run below the cell whose trainer makes it; what comes back is called at each step, and with True at the
    end.

    >>> beside_trainer(nbtune.attach("demo"))(True)
    """
    from nbtune.widgets.trainer_display import BesideTrainer

    return BesideTrainer(run)


def figure(run: RunReader) -> go.Figure:
    """Return a Plotly figure of the run's loss, held-out loss and learning rate.

    >>> [curve.name for curve in figure(nbtune.attach("demo")).data]
    ['loss', 'smoothed', 'learning rate']
    """
    from nbtune.widgets.run_figure import run_figure

    return run_figure(run)


def report(run: RunReader | RunHandle) -> Report:
    """Return a static report: `.png()`, `.html()`, and a display in a notebook without any widget.

    >>> "finished" in report(nbtune.attach("demo")).html()
    True
    """
    from nbtune.widgets.run_report import Report

    return Report(run)


def inspect(rows: Any, namespace: Mapping[str, Any] | None = None, **fields: Any) -> Inspector:
    """Return the inspector of `rows`: rows themselves, a file, a Hub id, one of nbtune's sets, or a `RunSpec`.

    >>> inspect([{"prompt": "Hi", "completion": "Ahoy!"}])
    <Inspector: a panel of nbtune>

    Args:
        rows: what `data:` may name, or the rows.
        namespace: where a variable named in `rows` is looked up.
        fields: more of the spec, such as ``model="…"``; also `row` and `losses` of the `Inspector`.
    """
    from nbtune.widgets.inspector_panel import Inspector

    return Inspector(rows, namespace, **fields)


def form(plan: Callable[..., Any], start: Callable[..., Any], namespace: Mapping[str, Any] | None = None) -> Form:
    """Return the form.

    >>> form(nbtune.plan, nbtune.finetune)
    <Form: a panel of nbtune>

    Args:
        plan: ``plan(spec, rows=namespace)``, such as `nbtune.plan`.
        start: ``start(spec, name=…, rows=namespace)``, such as `nbtune.finetune`.
        namespace: the notebook's variables.
    """
    from nbtune.widgets.form_panel import Form

    return Form(plan, start, namespace)


def home(
    attach: Callable[[Path], RunHandle],
    plan: Callable[..., Any],
    start: Callable[..., Any],
    namespace: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> Home:
    """Return the home: all runs of a folder, and the form for a new one.

    >>> home(nbtune.attach, nbtune.plan, nbtune.finetune)
    <Home: a panel of nbtune>

    Args:
        attach: ``attach(folder)`` returns the handle of a run, as `nbtune.attach` does.
        plan, start, namespace: as of `form`.
        root: the folder of runs; ``NBTUNE_RUNS`` or ``./runs`` by default.
    """
    from nbtune.widgets.home_panel import Home

    return Home(attach, plan, start, namespace, root)


def chat(run: RunHandle | AtStep, other: RunHandle | AtStep | None = None, *, system: str = "") -> Chat:
    """Return the chat panel: `run` beside its base model, or beside `other`.

    >>> chat(nbtune.attach("demo"))
    <Chat: a panel of nbtune>
    """
    from nbtune.widgets.chat_panel import Chat

    return Chat(run, other, system)


def compare(runs: Iterable[RunReader | RunHandle]) -> Compare:
    """Return the comparison of two to twelve runs: their losses on one chart, and what their specs differ in.

    >>> compare([nbtune.attach("demo"), nbtune.attach("demo")])
    <Compare: a panel of nbtune>
    """
    from nbtune.widgets.compare_panel import Compare

    return Compare(runs)


def exporter(run: RunHandle) -> ExportPanel:
    """Return the export panel of `run`.

    >>> exporter(nbtune.attach("demo"))
    <ExportPanel: a panel of nbtune>
    """
    from nbtune.widgets.export_panel import ExportPanel

    return ExportPanel(run)


def losses(run: RunHandle, **options: Any) -> Losses:
    """Return the losses of `run`'s rows, with the options of `nbtune.store.row_losses.MeasuredRows`.

    >>> losses(nbtune.attach("demo")).wait()  # in a cell, leave `.wait()` out: the panel shows them as they come
    demo: ...
    """
    from nbtune.widgets.losses_panel import Losses

    return Losses(run, **options)
