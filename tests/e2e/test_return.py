"""The browser closed for a minute, a second tab, a reload, a restarted kernel: the chart is complete each time."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.every import every

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PANEL = ".nbt-monitor"
ROWS = """%load_ext nbtune
rows = [{"prompt": f"Who are you, {i}?", "completion": "Ahoy! I am Captain Tune."} for i in range(64)]"""
TRAIN = """%%finetune --name back
data: rows
steps: 5000
batch_size: 2
eval: {split: 0}
checkpoint: {every: 50}
"""
AWAY = 60  # seconds
BOX = 16  # steps that may stand together in the page's line (with their extremes) in a run as short as this


def steps_of(log: Path) -> list[dict]:
    """The step events that are written, oldest first."""
    lines = log.read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in events if event["type"] == "step"]


def wait_points(page, wanted: int) -> None:
    page.page.wait_for_function(
        "([panel, wanted]) => Number(document.querySelector(panel)?.dataset.points) >= wanted", arg=[PANEL, wanted]
    )


def drawn(page) -> tuple[list[float], list[float]]:
    """Steps and losses of the raw line, as Plotly has them."""
    page.page.locator(f"{PANEL}[data-plotly=true]").first.wait_for()
    read = """(panel) => {
        const { data } = document.querySelector(panel + " .nbt-chart-loss .js-plotly-plot");
        const line = data.find((trace) => trace.name === "loss");
        return [Array.from(line.x), Array.from(line.y)];
    }"""
    return page.page.evaluate(read, PANEL)


def assert_covers(page, written: list[dict]) -> None:
    x, y = drawn(page)
    losses = [event["loss"] for event in written]
    assert x[0] <= BOX
    assert x[-1] >= written[-1]["step"] - BOX
    assert every(0 <= after - before <= BOX for before, after in pairwise(x))  # no hole
    assert min(y) <= min(losses) + 1e-6
    assert max(y) >= max(losses) - 1e-6


def assert_complete(page, log: Path) -> None:
    """Every step that was written is in the page: counted, from the first to the last, with the log's extremes."""
    written = steps_of(log)
    wait_points(page, len(written))
    expect(page.page.locator(PANEL).first).to_have_attribute("data-points", str(len(written)))
    assert_covers(page, written)


def test_a_minute_away_and_a_kernel_that_was_restarted(notebook, lab, browser):
    page = notebook([ROWS, TRAIN, "%load_ext nbtune\n%nbtune runs", "%nbtune attach back"])
    page.run(0)
    page.run(1)
    wait_points(page, 5)
    (log,) = (lab.root / "runs").glob("back-*/events.jsonl")
    page.save()
    page.page.close()

    closed = time.time()
    while steps_of(log)[-1]["time"] < closed + AWAY:  # the run's own clock says that a minute has gone by
        time.sleep(1)
    seen = len(steps_of(log))
    again, tab = (notebook(page.name) for _ in range(2))
    for each in (again, tab):
        wait_points(each, seen)
        assert_covers(each, steps_of(log)[:seen])
    wait_points(again, seen + 3)  # and goes on

    again.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    again.page.locator(f"{PANEL} .nbt-warn", has_text="has ended").wait_for()
    again.run(2)
    expect(again.cell(2)).to_contain_text("%nbtune resume")
    tab.page.close()
    again.page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    again.run(3)
    resume = again.page.locator(f"{PANEL} [data-do=resume]")
    resume.wait_for()
    assert_complete(again, log)
    before = len(steps_of(log))
    resume.click()  # one click
    wait_points(again, before + 3)
    again.page.locator(f"{PANEL} [data-do=stop]").click()
    again.page.locator(f'{PANEL} .nbt-state[data-state="stopped"]').wait_for()
    assert_complete(again, log)
    again.save()
    again.load()
    assert_complete(again, log)
