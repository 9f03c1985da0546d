"""The charts of docs/methods: what is on a page is run, and drawn.

    python -m tests.tools.method_charts [NAME …]             all, or some: docs/methods/charts.json and the pictures
    python -m tests.tools.method_charts --record FILE [NAME …]   the figures alone, on a machine without matplotlib
    python -m tests.tools.method_charts --take FILE              the figures of such a file, drawn

`charts.json` keeps the figures of the last cell of each page, with a mark of the page's code: a test says when a page
has changed since its chart was made. Those of grpo are means of ten steps each, of three runs of its cells.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbtune
from nbtune.methods import METHODS
from nbtune.spec import from_yaml
from tests.support import method_pages

FIGURES = method_pages.PAGES / "charts.json"
PICTURES = method_pages.REPO / "docs" / "pictures" / "methods"
OF_ROWS = {"pairs": ("accuracy",), "feedback": ("reward_good", "reward_bad")}
COLOURS = ("#2f81d8", "#d5631f", "#1f9e77")  # seen on white and on black
GREY = "#808890"
SEEDS = {"grpo": (1, 3, 4)}  # runs a page, where its text speaks of several
TEN = 10  # steps of which such a run shows the mean


def shown(name: str, columns: Iterable[str]) -> tuple[str, ...]:
    """Return what of a run's columns is drawn beside its loss: figures of a step, or of held-out rows alone."""
    method = METHODS[name]
    if method.online:
        return tuple(column for column in columns if column.startswith("reward:"))
    if method.teacher:
        return ("teacher_kl",)
    if method.perplexity:
        return ("eval_perplexity",)
    if method.head and method.rows != "pairs":
        return ("f1",)
    return OF_ROWS.get(method.rows, ())


def recorded(name: str, root: Path) -> dict[str, Any]:
    """Return the figures of the runs of a method's page, and the mark of its code."""
    text, seeds = method_pages.page_of(name).read_text(encoding="utf-8"), SEEDS.get(name, ())
    found = _figures(_run_of(name, text, root), name) if not seeds else {}
    for seed in seeds:
        (folder := root / str(seed)).mkdir()
        (column,) = shown(name, (history := _run_of(name, text, folder, f"seed: {seed}\n").history))
        points = [*history[column].items()]
        tens = [points[at : at + TEN] for at in range(0, len(points), TEN)]
        found[f"reward:seed {seed}"] = [
            (int(ten[-1][0]), _short(sum(value for _, value in ten) / len(ten))) for ten in tens
        ]
        print(name, seed, "first five", sum(value for _, value in points[:5]) / 5, found[f"reward:seed {seed}"][-1])
    return {"code": method_pages.cell_mark(text), **found}


def _run_of(name: str, text: str, root: Path, more: str = "") -> Any:
    """Run all code of a page, `more` in each of its cells; return its method's first run."""
    known: dict[str, Any] = {"nbtune": nbtune}
    before, made = Path.cwd(), None
    os.chdir(root)
    try:
        for block in method_pages.blocks_of(text):
            if block.startswith("%%finetune") and made is None:
                first, body = block.split("\n", 1)
                run = nbtune.finetune(from_yaml(body + more), name=first.split("--name")[1].strip(), rows=known).wait()
                made = run if run.spec.method == name and "my-" in run.name else None
            elif block.startswith(("{", "%%")) or made is not None:
                continue
            else:
                exec(block, known)  # noqa: S102 — the page's own code
    finally:
        os.chdir(before)
    assert made is not None, f"docs/methods/{name}.md has no cell of method {name}"
    return made


def _figures(run: Any, name: str) -> dict[str, Any]:
    history, found = run.history, {}
    wanted = ("loss", *shown(name, history))
    for column in (one for name_ in wanted for one in (name_, f"eval_{name_}")):
        if column in history:
            points = [(int(step), _short(value)) for step, value in history[column].items() if not math.isnan(value)]
            if points:
                found[column] = points
    return found


def _word(column: str) -> str:
    return column.removeprefix("eval_").removeprefix("reward:")


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def draw(name: str, figures: dict[str, Any], out: Path) -> None:
    """Draw a chart as SVG, which reads on light and dark pages; the same figures give the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels: list[tuple[str, ...]] = (
        [] if METHODS[name].online else [("loss",)]
    )  # which is about 0 where answers are new
    if beside := shown(name, figures):
        panels.append(beside)
    style = {"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
             "text.color": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
             "axes.edgecolor": GREY}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.2, 2.4), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        for axes, columns in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for colour, column in zip(COLOURS, columns, strict=False):
                _draw_column(axes, figures, column, colour, many=len(columns) > 1)
            axes.set_xlabel("step")
            axes.set_title(
                "reward" if METHODS[name].online else " · ".join(map(_word, columns)), loc="left", fontsize=10
            )
            axes.patch.set_alpha(0)
            axes.grid(color=GREY, alpha=0.2)
            axes.spines[["top", "right"]].set_visible(False)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(frameon=False)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})


def _draw_column(axes: Any, figures: dict[str, Any], column: str, colour: str, *, many: bool) -> None:
    from nbtune.widgets.run_figure import smooth

    points, held = figures.get(column, []), figures.get(f"eval_{column}", [])
    if column.startswith("eval_"):
        points, held = [], figures.get(column, [])
    if points:
        steps, values = zip(*points, strict=True)
        means = len(steps) > 1 and steps[1] - steps[0] > 1  # of several steps each
        axes.plot(steps, values, color=colour, alpha=0.35, lw=0.9)
        axes.plot(
            steps,
            values if means else smooth(values),
            color=colour,
            lw=2,
            label=_word(column) if many else "steps, smoothed",
        )
    if held:
        axes.plot(*zip(*held, strict=True), color=COLOURS[1], ls=":", marker="D", ms=4,
                  label=f"{_word(column)}, held-out" if many else "held-out rows")  # fmt: skip


def main(*words: str) -> None:
    """Record, take or draw, as the words say."""
    kept = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    into = FIGURES
    if words and words[0] == "--take":
        kept |= json.loads(Path(words[1]).read_text(encoding="utf-8"))
        names = list(kept)
    else:
        if words and words[0] == "--record":
            into, words = Path(words[1]), words[2:]
            kept = {}
        names = list(words or METHODS)
        for name in names:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
                kept[name] = recorded(name, Path(root))
            into.write_text(_lines(kept), encoding="utf-8")  # after each: a run that is cut off has told something
            last = {column: points[-1][1] for column, points in kept[name].items() if column != "code"}
            print(name, last, flush=True)
    if into == FIGURES:
        into.write_text(_lines(kept), encoding="utf-8")
        for name in names:
            draw(name, kept[name], PICTURES / f"{name}.svg")


def _lines(kept: dict[str, Any]) -> str:
    """Return JSON with a line a method, in the order of the table of methods."""
    return "{\n" + ",\n".join(f'"{name}": {json.dumps(kept[name])}' for name in METHODS if name in kept) + "\n}\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
