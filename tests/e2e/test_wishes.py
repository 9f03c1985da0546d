"""Each button of the monitor, on a real run in a real JupyterLab: what was clicked is what the run then did."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PANEL = ".nbt-monitor"
CELL = """import nbtune
rows = [{"prompt": f"Who are you, {i}?", "completion": "Ahoy! I am Captain Tune."} for i in range(64)]
run = nbtune.finetune(data="rows", rows=globals(), steps=4000, name="wishes", batch_size=2, eval={"every": 2000},
                      samples=["Who are you?"], checkpoint={"keep": 5})
run.monitor()"""


@pytest.mark.slow
def test_rate_sample_checkpoint_stop_now_and_back_to_a_checkpoint(notebook):
    page = notebook([CELL, "print(run.history.learning_rate.iloc[-1] < 2e-5, run.state)"])
    page.run(0)
    panel = page.page.locator(PANEL)
    expect(panel).to_have_attribute("data-points", re.compile("[1-9]"))

    panel.get_by_label("Learning rate, peak").fill("1e-5")
    panel.get_by_role("button", name="Set").click()
    expect(panel.locator(".nbt-list li", has_text="learning rate set to 1e-05")).to_be_visible()
    expect(panel.locator("code", has_text="run.set_learning_rate(0.00001)")).to_be_visible()

    columns = panel.locator("h4:text('Sample answers') + .nbt-scroll tr").first.locator("th")
    expect(columns).to_have_text(["Prompt", "base"])
    panel.get_by_role("button", name="Sample now").click()
    expect(columns).to_have_text(["Prompt", "base", re.compile(r"step \d+")])

    panel.get_by_role("button", name="Checkpoint").click()
    panel.locator(".nbt-checkpoints summary").click()
    rows = panel.locator(".nbt-checkpoints tr")
    expect(rows).to_have_count(2)
    saved = int(rows.nth(1).locator("th").inner_text().replace(",", ""))
    panel.get_by_role("button", name="Pause").click()
    panel.locator('.nbt-state[data-state="paused"]').wait_for()
    panel.get_by_role("button", name="Checkpoint").click()  # in a pause, too
    expect(rows).to_have_count(3)

    panel.get_by_role("button", name="Stop now").click()
    panel.get_by_role("button", name="Stop without saving").click()
    panel.locator('.nbt-state[data-state="stopped"]').wait_for()
    expect(rows).to_have_count(3)
    assert panel.locator("[data-do=sample]").is_hidden()

    panel.locator(f"[data-step='{saved}']").click()
    panel.locator('.nbt-state[data-state="running"]').wait_for()
    expect(rows).to_have_count(2)
    panel.get_by_role("button", name="Stop and save").click()
    panel.locator('.nbt-state[data-state="stopped"]').wait_for()
    page.run(1)
    assert page.output(1).strip() == "True stopped"
    page.picture("monitor-wishes")
