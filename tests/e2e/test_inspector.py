"""The inspector in a real JupyterLab, by keyboard and by mouse, with text that would like to be HTML."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser

CELL = """from nbtune.widgets import inspect
rows = [{"prompt": f"Who are you, {k}?", "completion": f"Ahoy! I am Captain Tune, number {k}. " * (k % 5 + 1)}
        for k in range(60)]
rows[1] = {"prompt": "<img src=x onerror='window.hacked=1'>\\u202e</script>",
           "completion": "$x^2$ \\x1b[31mred " + "w" * 400}
panel = inspect(rows)
panel"""


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
