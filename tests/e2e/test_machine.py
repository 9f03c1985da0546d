"""Memory by what holds it against the plan, how busy the device is, and its notes: from recorded events."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PANEL = ".nbt-monitor"
RUN = """import math
from memory_run import MemoryRun, made_up_step
from nbtune import events as ev
from nbtune.planner.plan import MemoryPlan
from nbtune.widgets import monitor
GIB = 2**30
run = MemoryRun("demo")
run.plan.device, run.plan.available_bytes = "cuda", 24 * GIB
run.plan.memory = MemoryPlan(weights=15 * GIB, adapter=GIB // 8, gradients=GIB // 8, optimizer=GIB // 4,
    activations=3 * GIB, head=GIB // 2, reserve=GIB)
panel = monitor(run)
panel"""
SAY = """def device(step):
    work = int((3.1 + 0.3 * math.sin(step / 9)) * GIB)
    # by letters, as a run's file has them: they are stacked by how long they stay
    parts = {"adapter": GIB // 8, "kept": GIB // 2, "state": 3 * GIB // 8, "weights": 15 * GIB, "work": work}
    slowed = "heat, power" if step > 60 else "power"
    return ev.Device(step=step, parts=parts, busy=92 + 6 * math.sin(step), temperature=91, watts=350, slowed=slowed)
run.say(ev.State(state="running", total_steps=200))
run.say(*[event for k in range(1, 201) for event in (made_up_step(k), device(k))])"""


@pytest.mark.slow
def test_memory_by_component_and_the_devices_share_are_drawn(notebook):
    page = notebook([RUN, SAY])
    page.run(0)
    panel = page.page.locator(PANEL)
    page.page.locator(f"{PANEL}[data-plotly=true]").wait_for()
    stacked = panel.locator(".nbt-chart-memory")
    busy = panel.locator("figure", has_text="GPU busy")
    expect(stacked).to_be_hidden()  # a run that does not tell has the line of before
    expect(busy).to_be_hidden()

    page.run(1)
    expect(stacked).to_be_visible()
    expect(stacked).to_have_attribute("aria-label", WORDS)
    layers = stacked.locator(".js-plotly-plot").evaluate(
        "(plot) => plot.data.map((trace) => [trace.name, trace.stackgroup ?? null])"
    )
    assert layers == [*([name, "held"] for name in PARTS), ["plan", None]]
    slow = "Heat (91 °C) slowed it 100 % of the time (steps 61–200)."
    limit = "The power limit (350 W) slowed it 100 % of the time (steps 1–200)."
    expect(busy.locator(".nbt-chart")).to_have_attribute(
        "aria-label", f"GPU busy (%) over steps. Now 87 %. {slow} {limit}"
    )
    expect(busy.locator("small > div")).to_have_text([slow, limit])
    bands = busy.locator(".js-plotly-plot").evaluate("(plot) => plot.data.slice(1).map((trace) => [...trace.x])")
    assert bands == [[60.5, 200.5], [0.5, 200.5]]
    expect(panel.locator(".nbt-list li", has_text="too hot (91 °C)")).to_be_visible()
    expect(panel.locator(".nbt-list li", has_text="power limit (350 W)")).to_be_visible()

    for summary in panel.locator("summary:visible").all():
        summary.click()
    row = panel.locator("tr", has_text="activations and head")
    expect(row.locator("td")).to_have_text(["3.5 GiB", "3.0 GiB", "3.4 GiB"])
    assert page.looks("monitor-machine", PANEL) == []


PARTS = ["weights", "adapter", "gradients and optimizer", "activations and head", "reserved by PyTorch"]
WORDS = (
    "VRAM (GiB) over steps. Now 19.0 GiB, planned 20.0 GiB: weights 15.0 GiB, adapter 128 MiB, "
    "gradients and optimizer 384 MiB, activations and head 3.0 GiB, reserved by PyTorch 512 MiB."
)
