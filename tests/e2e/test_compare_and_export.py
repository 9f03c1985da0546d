"""The comparison and the export panel in a real JupyterLab."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

TRAIN = """import nbtune
from nbtune.widgets import compare, exporter
rows = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(40)]
one = nbtune.finetune(data="rows", rows=globals(), steps=12, name="one").wait()
two = nbtune.finetune(data="rows", rows=globals(), steps=12, name="two", learning_rate=2e-3, adapter={"r": 4}).wait()
compare([one, two])"""


def test_two_runs_are_compared_and_one_is_exported(notebook, lab):
    page = notebook([TRAIN, "exporter(two)"], width=900)
    page.run(0)
    comparison = page.page.locator(".nbt-compare")
    page.page.locator(".nbt-compare[data-plotly=true]").wait_for()
    expect(comparison.locator(".scatterlayer .trace")).to_have_count(2)
    expect(comparison.get_by_role("cell", name="0.002")).to_be_visible()
    assert page.looks("compare", ".nbt-compare") == []

    page.run(1)
    panel = page.page.locator(".nbt-exportpanel")
    panel.get_by_label("q4_k_m").check()
    panel.get_by_role("button", name="Make GGUF").click()
    expect(panel.locator("code")).to_have_text('run.export.gguf("q8_0", "q4_k_m")')
    expect(panel.locator(".nbt-files li", has_text="q4_k_m")).to_be_visible()
    expect(panel.get_by_role("button", name="Make GGUF")).to_be_enabled()
    assert len(list((lab.root / "runs").glob("two-*/exports/*.gguf"))) == 2
    assert page.looks("export", ".nbt-exportpanel") == []
