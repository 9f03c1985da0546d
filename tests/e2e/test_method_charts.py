"""What a method tells besides the loss, drawn beside the other small charts: from recorded events."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PANEL = ".nbt-monitor"
RUN = """import dataclasses, math
from memory_run import MemoryRun, made_up_step
from nbtune import events as ev
from nbtune.widgets import monitor
run = MemoryRun("demo")
panel = monitor(run)
panel"""
SAY = """def figures(k):
    better, worse = 1.5 * (1 - math.exp(-k / 40)), -2 * (1 - math.exp(-k / 60))
    return {"accuracy": 1 - 0.5 * math.exp(-k / 30), "margin": better - worse,
        "reward_chosen": better, "reward_rejected": worse}
run.say(ev.State(state="running", total_steps=200))
run.say(*[dataclasses.replace(made_up_step(k), metrics=figures(k)) for k in range(1, 201)])
run.say(*[ev.Eval(step=k, loss=0.5, metrics=figures(0.8 * k)) for k in (50, 100, 150, 200)])"""


def test_accuracy_and_rewards_are_drawn_where_a_method_tells_them(notebook):
    page = notebook([RUN, SAY])
    page.run(0)
    panel = page.page.locator(PANEL)
    page.page.locator(f"{PANEL}[data-plotly=true]").wait_for()
    shares, rewards = (panel.locator("figure", has_text=name) for name in ("Accuracy", "Rewards"))
    expect(shares).to_be_hidden()
    expect(rewards).to_be_hidden()

    page.run(1)
    expect(shares.locator(".nbt-chart")).to_have_attribute("aria-label", "Accuracy over steps. Now accuracy 0.9994.")
    expect(rewards.locator(".nbt-chart")).to_have_attribute(
        "aria-label", re.compile(r"Rewards over steps\. Now margin 3\.419, chosen 1\.49, rejected .1\.929\.")
    )
    names = rewards.locator(".js-plotly-plot").evaluate("(plot) => plot.data.map((trace) => trace.name)")
    told = ["margin", "chosen", "rejected"]
    assert names == [*told, *(f"{name}, held-out" for name in told)]
    assert page.looks("monitor-method", PANEL) == []
