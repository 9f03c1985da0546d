"""The chat in a real JupyterLab, with the embedded model: both answer, and a blind vote is kept."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

TRAIN = """import nbtune
from nbtune.widgets import chat
rows = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(40)]
run = nbtune.finetune(data="rows", rows=globals(), steps=10, name="talk").wait()
panel = chat(run)
panel"""
HOSTILE = "<img src=x onerror='window.hacked=1'> Who are you?"


def test_both_answer_and_a_blind_vote_is_kept(notebook, lab):
    page = notebook([TRAIN], width=900)
    page.run(0)
    panel = page.page.locator(".nbt-chatpanel")
    panel.get_by_label("Ask both…").fill(HOSTILE)
    panel.get_by_label("Tokens at most").fill("12")
    panel.get_by_label("Ask both…").press("Enter")
    expect(panel.get_by_text("thinking…")).to_have_count(0)
    expect(panel.locator(".nbt-answer")).to_have_count(2)
    expect(panel.get_by_role("button", name="Ask")).to_be_enabled()
    assert panel.locator("img").count() == 0
    assert panel.locator(".nbt-answer .nbt-bad").count() == 0

    panel.get_by_label("Blind vote").check()
    panel.get_by_label("Ask both…").fill("And where do you live?")
    panel.get_by_label("Ask both…").press("Enter")
    panel.get_by_role("button", name="A", exact=True).wait_for()
    page.picture("chat-blind", panel)
    panel.get_by_role("button", name="A", exact=True).click()
    panel.get_by_role("button", name="Save 1 votes").click()
    expect(panel.get_by_text("Saved in preferences.jsonl")).to_be_visible()
    assert (lab.root / "preferences.jsonl").stat().st_size > 20
    assert page.looks("chat", ".nbt-chatpanel") == []
