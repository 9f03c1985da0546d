"""The chat that a finished monitor opens below its buttons, without a mouse."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PANEL = ".nbt-monitor"
RUN = """from memory_run import MemoryRun, made_up_step
from nbtune import events as ev
from nbtune.widgets import monitor
run = MemoryRun("demo")
run.say(ev.State(state="running"), *[made_up_step(k) for k in range(1, 201)])
panel = monitor(run)
panel"""


@pytest.mark.slow
def test_a_finished_run_is_asked_from_its_monitor(notebook):
    page = notebook([RUN, "run.say(ev.State(state='finished', step=200))"])
    page.run(0)
    panel = page.page.locator(PANEL)
    chat = panel.locator("[data-do=chat]")
    expect(panel.locator('.nbt-state[data-state="running"]')).to_be_visible()
    expect(chat).to_be_hidden()
    page.run(1)
    expect(chat).to_be_visible()

    keys = page.page.keyboard
    panel.locator("summary").first.focus()
    while not chat.evaluate("(node) => node === document.activeElement"):
        keys.press("Shift+Tab")  # the buttons come before what is folded up
    keys.press("Enter")
    expect(panel.locator("code", has_text="run.chat()")).to_be_visible()
    expect(panel.locator(".nbt-chatpanel textarea")).to_be_focused()
    keys.type("Who are you?")
    keys.press("Enter")
    expect(panel.locator(".nbt-chatpanel")).to_contain_text("I am a captain.")
    expect(panel.locator(".nbt-chatpanel")).to_contain_text("I am a model.")
    assert page.looks("monitor-chat", PANEL) == []

    keys.press("Escape")
    expect(panel.locator(".nbt-chatpanel")).to_have_count(0)
    expect(chat).to_be_focused()

    # what is open is open after a reload, too
    keys.press("Enter")
    expect(panel.locator(".nbt-chatpanel textarea")).to_be_focused()
    page.save()
    page.load()
    expect(page.page.locator(f"{PANEL} .nbt-chatpanel textarea")).to_be_visible()
