"""The form in a real JupyterLab: typed, checked, planned, started, and its run watched below it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

CELL = """import nbtune
from nbtune.widgets import form
rows = [{"prompt": f"Who are you, {k}?", "completion": f"Ahoy {k}!"} for k in range(40)]
panel = form(nbtune.plan, nbtune.finetune, globals())
panel"""


def test_a_run_by_keyboard(notebook, lab):
    page = notebook([CELL, "print(panel.spec.steps, panel.run.name)"], width=1000)
    page.run(0)
    panel = page.page.locator(".nbt-form")
    assert "Next: choose the rows" in panel.locator(".nbt-error").inner_text()
    page.picture("form-first", panel)

    panel.get_by_label("Data", exact=True).focus()
    page.page.keyboard.type("rows")
    page.page.locator(".nbt-form[data-costs=known]").wait_for()
    assert "RAM" in panel.get_by_role("status").first.inner_text()
    panel.get_by_label("How careful").focus()
    page.page.keyboard.press("q")  # quick check
    page.page.wait_for_function("() => document.querySelector('.nbt-form textarea').value.includes('steps: 30')")

    # the YAML fills the fields, too, and errors name the line
    yaml = panel.locator("textarea")
    yaml.fill("model: nbtune/tiny\ndata: rows\nsteps: 12\nlerning_rate: 1")
    panel.locator(".nbt-error", has_text="line 4").wait_for()
    page.picture("form-error", panel)
    yaml.fill("model: nbtune/tiny\ndata: rows\nsteps: 12\nadapter: {r: 8}")
    expect(panel.get_by_label("Adapter: rank")).to_have_value("8")
    yaml.press("Control+End")
    page.page.keyboard.type("\nepochs: 2")  # Lab takes Enter, and undoing, from whatever field is in a cell
    panel.locator(".nbt-error", has_text="epochs").wait_for()
    page.page.keyboard.press("Control+z")
    expect(yaml).not_to_have_value(re.compile("epochs: 2"))
    yaml.fill("model: nbtune/tiny\ndata: rows\nsteps: 12\nadapter: {r: 8}")
    expect(panel.locator(".nbt-error")).to_be_hidden()
    page.page.locator(".nbt-form[data-costs=known]").wait_for()
    panel.locator("summary", has_text="reasons").click()
    panel.locator("summary", has_text="More fields").click()
    assert page.looks("form", ".nbt-form") == []

    # a file that is uploaded lies beside the notebook and is used
    panel.locator("input[type=file]").set_input_files(
        {"name": "more.jsonl", "mimeType": "text/plain", "buffer": b'{"prompt": "a", "completion": "b"}\n' * 30}
    )
    page.page.wait_for_function("() => document.querySelector('.nbt-form textarea').value.includes('more.jsonl')")
    assert (lab.root / "more.jsonl").stat().st_size > 100

    panel.get_by_label("Name", exact=True).fill("clicked")
    panel.get_by_role("button", name="Start").press("Enter")
    page.page.locator('.nbt-monitor .nbt-state[data-state="finished"]').wait_for()
    page.run(1)
    assert page.output(1).strip() == "12 clicked"

    # the same spec as a cell of one's own, below the form
    panel.get_by_role("button", name="Insert as cell").press("Enter")
    cells = page.page.locator(".jp-Notebook .jp-CodeCell")
    expect(cells).to_have_count(3)
    expect(cells.nth(1)).to_contain_text("%%finetune --name clicked")
    expect(cells.nth(1)).to_contain_text("data: more.jsonl")
