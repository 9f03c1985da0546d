"""The loss explorer in a real JupyterLab: measured, sorted, opened in the inspector; by mouse and by keyboard."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

TRAIN = """import nbtune
rows = [{"prompt": f"Who are you, {k}?", "completion": f"Ahoy! I am Captain Tune, number {k}. " * (k % 5 + 1)}
        for k in range(60)]
rows[7] = {"prompt": "<img src=x onerror='window.hacked=1'>", "completion": "zq " * 40}
run = nbtune.finetune(data="rows", rows=globals(), steps=6, batch_size=4, name="known").wait()
losses = run.losses()
losses"""


def test_rows_are_sorted_and_opened_in_the_inspector(notebook):
    page = notebook([TRAIN, "print(losses.sorted()[0].row, losses.sorted(lowest=True)[0].row)"], width=900)
    page.run(0)
    panel, keys = page.page.locator(".nbt-losses").first, page.page.keyboard
    expect(panel).to_have_attribute("data-busy", "false")
    expect(panel.get_by_text("60 of 60 rows · weights after step 6")).to_be_visible()
    page.run(1)
    highest, lowest = page.output(1).split()
    rows = panel.locator("tbody tr")
    expect(rows.first).to_have_attribute("data-index", highest)
    expect(rows).to_have_count(12)
    panel.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(36)

    panel.get_by_label("Order").select_option("lowest")
    expect(rows.first).to_have_attribute("data-index", lowest)
    expect(rows).to_have_count(12)
    panel.get_by_label("Sort by").select_option("learnt")
    expect(panel.locator("th[aria-sort=ascending]")).to_have_text("Learnt")
    panel.get_by_label("Sort by").select_option("loss")
    panel.get_by_label("Order").select_option("highest")
    assert page.looks("losses", ".nbt-losses") == []

    # by keyboard: from the row to the inspector, whose tokens tell their losses
    rows.nth(1).locator(".nbt-open").focus()
    index = rows.nth(1).get_attribute("data-index")
    keys.press("Enter")
    inspector = panel.locator(".nbt-inspector")
    expect(inspector).to_have_attribute("data-row", index)
    expect(panel.locator(".nbt-code code")).to_have_text(f"nbtune.inspect(run, row={index})")
    expect(inspector.get_by_text(re.compile("mean loss"))).to_contain_text(
        rows.nth(1).locator("td").first.inner_text()[:4]
    )
    inspector.locator(".nbt-tok.nbt-on").first.hover()
    expect(inspector.locator(".nbt-detail")).to_have_text(re.compile(r"loss [\d.]+ \("))
    page.picture("losses-opened", panel)

    # another row: the same inspector
    rows.nth(0).locator(".nbt-open").click()
    expect(inspector).to_have_attribute("data-row", highest)
    assert panel.locator(".nbt-inspector").count() == 1
    panel.get_by_role("button", name="Close the inspector").click()
    expect(inspector).to_have_count(0)
    assert page.page.evaluate("() => window.hacked") is None
