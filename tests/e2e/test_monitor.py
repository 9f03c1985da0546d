"""The monitor in a real JupyterLab: while another cell runs, after a reload, in a second view, in the dark."""

from __future__ import annotations

import time

import numpy as np
import pytest

from nbtune.export.llama_runner import LlamaRunner
from tests.support.llama import llama_library

pytestmark = pytest.mark.browser

PANEL = ".nbt-monitor"
ROWS = """%load_ext nbtune
rows = [{"prompt": f"Who are you, {i}?", "completion": "Ahoy! I am Captain Tune."} for i in range(64)]"""
TRAIN = """%%finetune --name walk
data: rows
steps: 600
batch_size: 2
"""
MEMORY = """from memory_run import MemoryRun, made_up_step
from nbtune import events as ev
from nbtune.widgets import monitor
run = MemoryRun("demo")
panel = monitor(run)
panel"""


def points(page, panel=PANEL):
    return int(page.page.locator(panel).first.get_attribute("data-points"))


def wait_points(page, wanted, panel=PANEL):
    page.page.wait_for_function(
        "([panel, wanted]) => Number(document.querySelector(panel)?.dataset.points) >= wanted", arg=[panel, wanted]
    )


def wait_state(page, *states):
    selector = ", ".join(f'{PANEL} .nbt-state[data-state="{state}"]' for state in states)
    page.page.locator(selector).first.wait_for(state="attached")


def test_a_run_from_its_cell_to_a_file(notebook, lab, record_property):
    page = notebook([ROWS, TRAIN, "import time\ntime.sleep(60)", "print(len(run.history))"])
    page.run(0)
    page.run(1)
    wait_points(page, 1)

    # while another cell sleeps, points arrive and a button works
    page.run(2, wait=False)
    running = page.cell(2).locator(".jp-InputPrompt", has_text="[*]")
    running.wait_for()
    wait_points(page, points(page) + 10)
    clicked = time.monotonic()
    page.page.click(f"{PANEL} [data-do=stop]")
    wait_state(page, "stopping", "stopped")
    record_property("stop_answered_seconds", time.monotonic() - clicked)
    wait_state(page, "stopped")
    record_property("stop_seconds", time.monotonic() - clicked)
    assert running.count() == 1
    page.picture("monitor-stopped-light")
    page.command("notebook:interrupt-kernel")
    running.wait_for(state="detached")

    # all points are there after a reload, and the panel works
    page.run(3)
    steps = int(page.output(3))
    page.save()
    page.load()
    wait_points(page, steps)
    assert points(page) == steps

    # export by a click
    page.page.click(f"{PANEL} [data-do=export]")
    page.page.locator(f"{PANEL} .nbt-exportpanel").get_by_role("button", name="Make GGUF").click()  # q8_0 is picked
    page.page.locator(f"{PANEL} .nbt-exportpanel li", has_text="q8_0.gguf").wait_for()
    files = [path for path in (lab.root / "runs").glob("walk-*/exports/*.gguf") if path.stat().st_size]
    assert len(files) == 1
    page.dark()
    page.picture("monitor-exported-dark")

    with LlamaRunner(files[0], library=llama_library()) as llama:
        ids = llama.tokenize(["Ahoy! I am Captain Tune."])[0]
        assert np.isfinite(llama.logits(ids)).all()


@pytest.mark.slow
def test_pause_resume_and_a_second_view_and_tab(notebook):
    page = notebook([MEMORY, "panel", "run.go(pause=0.1)", "monitor(run)"])
    page.run(0)
    page.run(1)
    page.run(2)
    wait_points(page, 3)
    page.page.locator(f"{PANEL} [data-do=pause]").first.click()
    wait_state(page, "paused")
    seen = points(page)
    views = page.page.locator(PANEL)
    assert views.count() == 2
    page.page.wait_for_function(
        "() => new Set([...document.querySelectorAll('.nbt-monitor')].map((view) => view.dataset.points)).size === 1"
    )
    page.picture("monitor-paused-two-views")
    assert page.complain(PANEL) == []

    # a second monitor sends little: Plotly is there already
    before = page.bytes
    page.run(3)
    page.page.wait_for_function("() => document.querySelectorAll('.nbt-monitor[data-plotly=true]').length === 3")
    assert page.bytes - before <= 104_000

    page.save()
    tab = notebook(page.name)
    wait_points(tab, seen)
    assert points(tab) == seen
    tab.page.locator(f"{PANEL} [data-do=pause]").first.click()
    wait_state(page, "running")
    wait_points(tab, seen + 3)
    wait_points(page, seen + 3)


@pytest.mark.slow
def test_it_reads_well_narrow_and_dark_and_shows_text_as_text(notebook):
    hostile = '<img src=x onerror="window.hacked=1"></script>\u202e\u200b $x^2$ ' + "w" * 300
    page = notebook(
        [
            MEMORY.replace('"demo"', repr(hostile)),
            "run.say(ev.State(state='running'), *[made_up_step(k) for k in range(1, 121)],\n"
            "  *[ev.Checkpoint(step=k, folder='a', bytes=5_000_000) for k in (60, 120)],\n"
            "  ev.Eval(step=60, loss=0.5, best=True), ev.Eval(step=120, loss=0.6),\n"
            f"  ev.Warning(message={hostile!r}, fix='read it'),\n"
            f"  *[ev.Sample(step=s, prompt={hostile!r}, answer={hostile!r}) for s in (0, 60, 120)])",
        ],
    )
    page.run(0)
    page.run(1)
    wait_points(page, 120)
    page.page.locator(f"{PANEL}[data-plotly=true]").wait_for()
    assert page.page.locator(f"{PANEL} img").count() == 0
    assert page.page.evaluate("() => window.hacked") is None
    for summary in page.page.locator(f"{PANEL} summary:visible").all():
        summary.click()
    panel = page.page.locator(PANEL)
    panel.locator("[data-do=drop]").click()
    panel.locator("[data-do=rate]").wait_for()
    assert page.looks("monitor", PANEL) == []


# Where each control, chart and figure was in every frame of ten seconds, from the panel's corner; and what it had then.
BOXES = """async (panel) => {
    const nodes = [...panel.querySelectorAll("button, input, summary, figure, .nbt-chart, .nbt-tile, .nbt-bar")];
    const seen = nodes.map(() => new Set()), end = performance.now() + 10_000;
    const from = Number(panel.dataset.points);
    while (performance.now() < end) {
        await new Promise((done) => requestAnimationFrame(done));
        const { x, y } = panel.getBoundingClientRect();
        nodes.forEach((node, k) => {
            const box = node.getBoundingClientRect();
            seen[k].add([box.x - x, box.y - y, box.width, box.height].map(Math.round).join(" "));
        });
    }
    const moved = nodes.map((node, k) => [node.className || node.tagName, node.textContent, [...seen[k]]]);
    return [Number(panel.dataset.points) - from, nodes.length, moved.filter(([, , boxes]) => boxes.length > 1)];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1000, 420])
def test_nothing_moves_while_it_is_told_for_ten_seconds(notebook, width):
    page = notebook([MEMORY.replace('"demo"', '"demo", 4000'), "run.go(pause=0.05)"], width=width)
    page.run(0)
    page.run(1)
    page.page.locator(f"{PANEL}[data-plotly=true]").wait_for()
    wait_points(page, 3)
    new, watched, moved = page.page.locator(PANEL).evaluate(BOXES)
    assert new > 50
    assert watched > 25
    assert moved == []
