"""A run as a picture and a small HTML report: what stays in a notebook when kernel and page are gone.

The picture comes from matplotlib's Figure alone (no pyplot: no global state, any thread, any backend). All text is
escaped; nothing in the HTML runs or loads.
"""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import Any

import numpy as np

from nbtune import events
from nbtune.data.prepare.report import LEFT_OUT
from nbtune.events import Eval
from nbtune.export.model_card import data_lines, samples_of
from nbtune.spec.text_metrics import shown
from nbtune.store.run_handle import RunHandle
from nbtune.store.run_reader import RunReader
from nbtune.untrusted import read_text
from nbtune.widgets.run_figure import COLOURS, smooth
from nbtune.widgets.run_state import Watched
from nbtune.widgets.sanitize import clean, without_home


class Report:
    """A run, as it is now, without a widget: `png()`, `html()`, or shown as a cell's value.

    Args:
        run: the run.
    """

    def __init__(self, run: RunReader | RunHandle) -> None:
        self.run = run
        watched = Watched(run)
        watched.close()
        self.view = watched.view
        self.status = self.view.status()

    @property
    def title(self) -> str:
        """One line: name, state, steps."""
        status = self.status
        steps = f"step {status['step']} of {status['total']}" if status["total"] else f"step {status['step']}"
        return f"Run {status['name']}: {status['state']}, {steps}"

    def png(self, width: float = 7.2, height: float = 2.9, dpi: int = 100) -> bytes:
        """Return the loss chart as a PNG; sizes in inches."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        self._draw(axes)
        out = io.BytesIO()
        # No date and no software version in the file: the same run gives the same bytes.
        figure.savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()

    def _draw(self, axes: Any) -> None:
        series = self.view.series
        x, evals = series.column("step"), [item for item in self.view.lists["evals"] if item["loss"] is not None]
        if len(series):
            axes.fill_between(
                x, series.column("loss_min"), series.column("loss_max"), color=COLOURS["loss"], alpha=0.2, lw=0
            )
            axes.plot(x, series.column("loss"), color=COLOURS["loss"], alpha=0.4, lw=0.8, label="loss")
            axes.plot(x, smooth(series.column("loss")), color=COLOURS["loss"], lw=2, label="smoothed")
        else:
            axes.text(0.5, 0.5, "no step was made", ha="center", va="center", transform=axes.transAxes)
        if evals:
            where = [item["step"] for item in evals], [item["loss"] for item in evals]
            axes.plot(*where, color=COLOURS["eval"], ls=":", marker="D", ms=4, lw=1.3, label="held-out")
        axes.set_title(_mathless(self.title), fontsize=10, loc="left")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) or evals:
            axes.legend(frameon=False, fontsize=9)

    def facts(self) -> list[tuple[str, str]]:
        """Return what the report's table says: pairs of a name and a value, as text."""
        status, facts = self.status, []
        if len(self.view.series):
            facts.append(("Loss", " → ".join(f"{loss:.4g}" for loss in self._first_and_last_tenth())))
        evals = [item for item in self.view.lists["evals"] if item["loss"] is not None]
        if evals:
            best = min(evals, key=lambda item: item["loss"])
            facts.append(("Held-out loss", f"{evals[-1]['loss']:.4g} (best {best['loss']:.4g} at step {best['step']})"))
        facts += [(name, f"{was} → {now}") for name, was, now in score_rows(self.run)]
        totals = self.view.standing.totals
        if totals.steps:
            speed = f", {totals.tokens / totals.seconds:,.0f} a second" if totals.seconds else ""
            facts.append(("Tokens", f"{totals.tokens:,}{speed}"))
            if totals.memory:
                facts.append(("Peak VRAM" if status["vram"] else "Peak RAM", f"{totals.memory / 2**30:.2f} GiB"))
        facts.append(("Time", duration(status["elapsed"])))
        for item in self.view.lists["exports"]:
            if item["done"] >= 1 and item["path"]:
                facts.append((item["kind"], item["path"]))
        return facts

    def _first_and_last_tenth(self) -> tuple[float, float]:
        """Return the mean loss of the first tenth of the steps, and of the last."""
        loss, count = self.view.series.column("loss"), self.view.series.column("count")
        begin, tenth = np.cumsum(count) - count, max(1.0, count.sum() / 10)
        first, last = begin < tenth, begin >= count.sum() - tenth
        last[-1] = True
        return float(np.average(loss[first], weights=count[first])), float(np.average(loss[last], weights=count[last]))

    def html(self, *, picture: bool = True) -> str:
        """Return a few lines of HTML: no script, no style sheet, nothing loaded, every text escaped."""
        rows = "".join(_row(name, value) for name, value in self.facts())
        notes = [*([self.status["error"]] if self.status["error"] else []), *self.view.lists["notes"][-5:]]
        items = "".join(f"<li>{escape(_sentence(note))}</li>" for note in notes)
        parts = [
            f"<p><b>{escape(self.title)}</b></p>",
            self._img() if picture else "",
            f"<table>{rows}</table>",
            f"<ul>{items}</ul>" if items else "",
            self._samples(),
            f"<pre style='font-family:monospace'>{escape(self.snippet)}</pre>" if self.snippet else "",
        ]
        return f'<div class="nbtune-static">{"".join(parts)}</div>'

    @property
    def snippet(self) -> str:
        """The lines that use the model, once there is one."""
        snippet = getattr(self.run, "snippet", None)
        if snippet is None or not self.status["step"] or self.status["live"]:
            return ""
        return without_home(clean(snippet(), 4000))

    def _img(self) -> str:
        data = base64.b64encode(self.png()).decode("ascii")
        return f'<img alt="{escape(self._alt)}" src="data:image/png;base64,{data}">'

    @property
    def _alt(self) -> str:
        return f"Loss over steps. {self.title}"

    def _samples(self) -> str:
        samples = [item for item in self.view.lists["samples"] if not item.get("group")]
        prompts = list(dict.fromkeys(item["prompt"] for item in samples))[:5]
        if not prompts:
            return ""
        first, last = min(item["step"] for item in samples), max(item["step"] for item in samples)
        answers = {(item["prompt"], item["step"]): item["answer"] for item in samples}
        head = ("Prompt", "Before" if first == 0 else f"Step {first}", "After")
        lines = [(prompt, answers.get((prompt, first), ""), answers.get((prompt, last), "")) for prompt in prompts]
        return f"<table>{_cells('th', head)}{''.join(_cells('td', line) for line in lines)}</table>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        lines = [self.title, *(f"  {name}: {value}" for name, value in self.facts()), self.snippet]
        return {"text/html": self.html(), "image/png": self.png(), "text/plain": "\n".join(lines).rstrip()}


def facts_for_card(run: RunReader, *, draw: bool = True) -> dict[str, Any]:
    """Return what the model card tells of a run; without `draw`, of the curve only that there is one."""
    history = run.history
    evals = history["eval_loss"].dropna()
    data, datasets = data_lines([source.source for source in run.spec.data])
    said = [event.message for event in run.events() if isinstance(event, events.Warning)]
    left_out = [message for message in dict.fromkeys(said) if LEFT_OUT.match(message)]
    return {
        "name": run.name,
        "spec": read_text(run.folder / "spec.yaml", links=False),
        "method": run.spec.method,
        "steps": run.step,
        "loss": float(history["loss"].iloc[-1]) if len(history) else None,
        "eval_loss": float(evals.iloc[-1]) if len(evals) else None,
        "samples": samples_of(run.events(), run.step, run.spec.samples),
        "abilities": run.plan.abilities.known() if run.plan is not None else [],
        "scores": score_rows(run),
        "starts": run.spec.start_from is not None,
        "evals": [(e.step, e.loss) for e in run.events() if isinstance(e, Eval)],
        "data": [*data, *left_out],
        "datasets": datasets,
        "curve": (Report(run).png() if draw else True) if len(history) else None,
    }


def score_rows(run: RunReader | RunHandle) -> list[tuple[str, str, str]]:
    """Return what was measured before the first step and after the last, for people: name, before, after."""
    words = lambda value: "–" if value is None else shown(value)  # noqa: E731
    scores = getattr(run, "scores", None) or {}
    return [(clean(name, 60).replace("_", " "), words(was), words(now)) for name, (was, now) in scores.items()]


def _cells(tag: str, texts: tuple[str, ...]) -> str:
    inner = "".join(f'<{tag} style="text-align:left">{escape(text)}</{tag}>' for text in texts)
    return f"<tr>{inner}</tr>"


def _row(name: str, value: str) -> str:
    return f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'


def _sentence(note: dict[str, Any]) -> str:
    return " ".join(part for part in (note["message"], note["cause"], note["fix"] and f"→ {note['fix']}") if part)


def _mathless(text: str) -> str:
    return text.replace("$", r"\$")


def duration(seconds: float) -> str:
    """Return seconds as people say them: 9.5 s, 3 min 20 s, 2 h 5 min.

    >>> duration(200)
    '3 min 20 s'
    """
    if not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
