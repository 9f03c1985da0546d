"""The inspector in a real JupyterLab, by keyboard and by mouse, with text that would like to be HTML."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

CELL = """from nbtune.widgets import inspect
rows = [{"prompt": f"Who are you, {k}?", "completion": f"Ahoy! I am Captain Tune, number {k}. " * (k % 5 + 1)}
        for k in range(60)]
rows[1] = {"prompt": "<img src=x onerror='window.hacked=1'>\\u202e</script>",
           "completion": "$x^2$ \\x1b[31mred " + "w" * 400}
panel = inspect(rows)
panel"""


@pytest.mark.slow
def test_rows_are_turned_searched_and_read_otherwise(notebook):
    page = notebook([CELL, "print(panel.spec.train_on)"], width=900)
    page.run(0)
    panel = page.page.locator(".nbt-inspector")
    panel.locator(".nbt-tok.nbt-on").first.wait_for()

    # by keyboard: a token is told in full
    panel.locator(".nbt-tokens").focus()
    for _ in range(3):
        page.page.keyboard.press("ArrowRight")
    assert panel.locator(".nbt-detail").inner_text().startswith("token 2 · id ")

    panel.get_by_label("Next row").click()
    panel.locator("xpath=self::*[@data-row='1']").wait_for()
    assert panel.locator("img").count() == 0
    assert page.page.evaluate("() => window.hacked") is None
    page.picture("inspector-hostile", panel)

    search = panel.get_by_label("Search")
    search.fill("number 43")
    search.press("Enter")
    panel.locator("xpath=self::*[@data-row='43']").wait_for()
    assert page.looks("inspector", ".nbt-inspector") == []
    for view in ("raw", "rendered"):
        panel.locator(f"[data-view={view}]").click()
        assert "number 43" in panel.locator(".nbt-plainpage").inner_text()

    panel.get_by_label("Train on").select_option("all")
    panel.locator("code", has_text="train_on: all").wait_for()
    panel.locator("[data-view=tokens]").click()
    assert panel.locator(".nbt-tok:not(.nbt-on)").count() == 0
    page.run(1)
    assert page.output(1).strip() == "all"


RUN = """import nbtune
rows = [{"prompt": f"Who are you, {k}?", "completion": f"Ahoy! I am Captain Tune, number {k}."} for k in range(24)]
run = nbtune.finetune(data="rows", rows=globals(), steps=4, batch_size=4, eval={"split": 0}, name="seen").wait()
panel = nbtune.inspect(rows, row=3, run=run)
panel"""
SEEN = """losses = run.token_losses(panel.inspection.ids(3))
same = round(losses[6], 2) == round(panel.row["losses"][6], 2)
print([(rule.match, rule.train) for rule in panel.spec.train_spans], same)
"""


@pytest.mark.slow
def test_spans_become_rules_by_mouse_and_by_keyboard_and_a_run_tells_losses(notebook):
    page = notebook([RUN, SEEN], width=900)
    page.run(0)
    panel, keys = page.page.locator(".nbt-inspector"), page.page.keyboard
    panel.locator("xpath=self::*[@data-row='3']").wait_for()
    tokens, detail = panel.locator(".nbt-tok"), panel.locator(".nbt-detail")
    yaml = panel.locator("code", has_text="data:")
    leave, train = (panel.get_by_role("button", name=name, exact=True) for name in ("Do not train this", "Train this"))
    expect(leave).to_be_disabled()

    # losses of the run that was given, on hover and for the row
    expect(panel.get_by_text("mean loss")).to_be_visible()
    tokens.nth(6).hover()
    expect(detail).to_have_text(re.compile(r"token 6 · id \d+ · .* · loss [\d.]+ \([\d.e-]+ %\)"))
    panel.get_by_label("Losses of").select_option(label="base of seen")
    expect(detail).to_have_text(re.compile("loss"))

    # by mouse: drag over the first two words of the answer
    first = next(k for k in range(tokens.count()) if "nbt-on" in tokens.nth(k).get_attribute("class"))
    before = panel.locator(".nbt-tok.nbt-on").count()
    tokens.nth(first).hover()
    page.page.mouse.down()
    tokens.nth(first + 1).hover()
    page.page.mouse.up()
    expect(panel.locator(".nbt-tok.nbt-sel")).to_have_count(2)
    leave.click()
    expect(yaml).to_contain_text("train: false")
    expect(panel.locator(".nbt-tok.nbt-on")).to_have_count(before - 2)
    expect(panel.locator(".nbt-rules li")).to_have_text(re.compile("Not trained: .* in 24 of the first 24 rows"))

    # by keyboard: three tokens of the question
    panel.locator(".nbt-tokens").focus()
    keys.press("Home")
    for _ in range(2):
        keys.press("ArrowRight")
    for _ in range(2):
        keys.press("Shift+ArrowRight")
    expect(detail).to_have_text(re.compile("3 selected: "))
    expect(panel.locator(".nbt-tok.nbt-sel")).to_have_count(3)
    keys.press("Tab")
    expect(train).to_be_focused()
    keys.press("Enter")
    expect(panel.locator(".nbt-rules li")).to_have_count(2)
    expect(panel.locator(".nbt-tok.nbt-on")).to_have_count(before + 1)
    expect(panel.locator(".nbt-tok.nbt-sel")).to_have_count(3)
    assert page.looks("inspector-spans", ".nbt-inspector") == []

    panel.get_by_role("button", name="Undo").click()
    expect(panel.locator(".nbt-rules li")).to_have_count(1)
    expect(panel.locator(".nbt-tok.nbt-on")).to_have_count(before - 2)

    # in the rendered text, by the browser's own selection
    panel.locator("[data-view=rendered]").click()
    panel.locator(".nbt-plainpage").evaluate(
        """(node) => {
            const at = node.firstChild.data.indexOf("Captain");
            getSelection().setBaseAndExtent(node.firstChild, at, node.firstChild, at + 7);
            node.dispatchEvent(new MouseEvent("mouseup", { bubbles: true }));
        }"""
    )
    leave.click()
    expect(panel.locator(".nbt-rules li").nth(1)).to_contain_text("Captain")
    panel.get_by_role("button", name=re.compile("Take the rule away")).first.click()
    expect(panel.locator(".nbt-rules li")).to_have_count(1)
    panel.get_by_label("Losses of").select_option(label="seen")
    panel.locator("[data-view=tokens]").click()
    tokens.nth(6).hover()
    expect(detail).to_have_text(re.compile("loss"))
    page.run(1)
    assert page.output(1).strip() == "[('Captain', False)] True"
