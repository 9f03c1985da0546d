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

ENDS = "print(losses.sorted()[0].row, losses.sorted(lowest=True)[0].row)"
NEXT = """new = losses.next.wait()
print(new.state, new.step, new.spec.row_weights)"""


@pytest.mark.slow
def test_rows_are_sorted_and_opened_in_the_inspector(notebook):
    page = notebook([TRAIN, ENDS, NEXT], width=900)
    page.run(0)
    panel, keys = page.page.locator(".nbt-losses").first, page.page.keyboard
    expect(panel).to_have_attribute("data-busy", "false")
    expect(panel.get_by_text("60 of 60 rows · measured after step 6")).to_be_visible()
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
    told = inspector.get_by_text(re.compile(r"mean loss [\d.]+"))
    expect(told).to_be_visible()
    mean = float(told.inner_text().rpartition(" ")[2])  # two decimals, where the table has three
    assert mean == pytest.approx(float(rows.nth(1).locator("td").first.inner_text()), abs=0.0051)
    inspector.locator(".nbt-tok.nbt-on").first.hover()
    expect(inspector.locator(".nbt-detail")).to_have_text(re.compile(r"loss [\d.]+ \("))
    page.picture("losses-opened", panel)

    # another row: the same inspector
    rows.nth(0).locator(".nbt-open").click()
    expect(inspector).to_have_attribute("data-row", highest)
    assert panel.locator(".nbt-inspector").count() == 1
    panel.get_by_role("button", name="Close the inspector").click()
    expect(inspector).to_have_count(0)

    # what is wanted of rows: by keyboard left out, by mouse counted twice and again, taken back
    code, state = panel.locator(".nbt-code code"), rows.first.locator(".nbt-wanted")
    first, second = (rows.nth(k).get_attribute("data-mark") for k in (0, 1))
    rows.first.locator(".nbt-open").focus()
    keys.press("Tab")
    expect(rows.first.get_by_role("button", name=f"Drop row {highest}", exact=True)).to_be_focused()
    keys.press("Enter")
    expect(state).to_have_text("left out")
    expect(code).to_have_text(f'losses.drop("{first}")')
    expect(rows.first.get_by_role("button", name=f"Keep row {highest}", exact=True)).to_be_focused()
    rows.nth(1).locator("[data-act=double]").click()
    expect(code).to_have_text(f'losses.weight("{second}", 2)')
    rows.nth(1).locator("[data-act=double]").click()
    expect(rows.nth(1).locator(".nbt-wanted")).to_have_text("× 4")
    panel.get_by_role("button", name="Undo", exact=True).click()
    expect(rows.nth(1).locator(".nbt-wanted")).to_have_text("× 2")
    expect(panel.get_by_text("1 left out, 1 weighted")).to_be_visible()
    assert page.looks("losses-wanted", ".nbt-losses") == []

    # and on from here: the new run's monitor comes up below
    panel.get_by_label("Steps").fill("3")
    panel.get_by_role("button", name="Show the code").click()
    expect(code).to_contain_text(f'.go_on(row_weights={{"{first}": 0, "{second}": 2}}, steps=3)')
    panel.get_by_role("button", name="Train on with these changes").click()
    expect(panel.get_by_text(re.compile(r"The run known \(\w+\) goes on from these weights"))).to_be_visible()
    expect(panel.locator(".nbt-monitor")).to_be_visible()
    page.run(2)
    assert page.output(2).strip() == f"finished 3 {{'{first}': 0.0, '{second}': 2.0}}"
    page.picture("losses-continued", panel)
    assert page.page.evaluate("() => window.hacked") is None
