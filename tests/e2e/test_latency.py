"""How long a click takes while a cell computes or sleeps, in an evaluation and during an export: 1 s was promised."""

from __future__ import annotations

import ast
import re
import time

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PANEL = ".nbt-monitor"
SLACK = 1.0  # seconds beside the 1 s that were promised: the machine is shared
CELL = """import nbtune
rows = [{"prompt": f"Who are you, {i}?", "completion": "Ahoy! I am Captain Tune."} for i in range(400)]
run = nbtune.finetune(data="rows", rows=globals(), steps=20000, name="quick", batch_size=2, eval=EVAL)
run.monitor()"""
HELD_OUT = "{'split': 0.9, 'max_rows': 100000, 'every': 1}"


def clicked(page, what: str, state: str) -> tuple[str, float, float]:
    """The state that a click asks for, when it was clicked, and the seconds until the page shows it."""
    button = page.page.locator(f"{PANEL} [data-do={what}]")
    button.scroll_into_view_if_needed()
    began = time.time()
    button.click()
    page.page.locator(f"{PANEL} .nbt-state[data-state={state}]").wait_for(state="attached")
    return state, began, time.time() - began


def granted(page, clicks: list[tuple[str, float, float]]) -> list[float]:
    """Seconds from each click to the run's own event."""
    page.run_code("print([(e.state, e.time) for e in run.events() if e.type == 'state'])")
    said = ast.literal_eval(page.page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output pre").inner_text())
    seconds = []
    for state, began, shown in clicks:
        first = {"stopped": "stopping"}.get(state, state)
        seconds.append(min(at for name, at in said if name == first and at >= began) - began)
        print(f"  {first}: granted after {seconds[-1]:.2f} s, {state} shown after {shown:.2f} s")
    return seconds


@pytest.mark.parametrize("cell", ["import time\ntime.sleep(60)", "while True: pass"], ids=["sleep", "loop"])
def test_a_click_is_granted_while_a_cell_is_busy(notebook, cell):
    page = notebook([CELL.replace("EVAL", "{}"), cell])
    page.run(0)
    expect(page.page.locator(PANEL)).to_have_attribute("data-points", re.compile("[1-9]"))
    page.run(1, wait=False)
    page.cell(1).locator(".jp-InputPrompt", has_text="[*]").wait_for()
    page.page.locator(PANEL).scroll_into_view_if_needed()
    clicks = [clicked(page, "pause", "paused"), clicked(page, "pause", "running")]
    page.page.locator(f"{PANEL} [data-do=export]").click()
    page.page.locator(f"{PANEL} [data-kind=adapter]").click()
    clicks.append(clicked(page, "stop", "stopped"))  # while something is exported
    assert page.cell(1).locator(".jp-InputPrompt", has_text="[*]").count() == 1
    page.command("notebook:interrupt-kernel")
    assert max(granted(page, clicks)) < 1 + SLACK


def test_a_click_is_granted_during_an_evaluation(notebook):
    page = notebook([CELL.replace("EVAL", HELD_OUT), "print(len(run.history.eval_loss.dropna()))"])
    page.run(0)
    expect(page.page.locator(PANEL)).to_have_attribute("data-points", re.compile("[1-9]"))
    clicks = [clicked(page, "pause", "paused"), clicked(page, "pause", "running"), clicked(page, "stop", "stopped")]
    page.run(1)
    assert page.output(1).strip() == "0"  # it was in the middle of the first one all the time
    assert max(granted(page, clicks)) < 1 + SLACK
