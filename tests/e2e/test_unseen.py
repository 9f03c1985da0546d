"""A monitor that nobody sees costs nothing: scrolled away, in a tab behind another, its output cleared."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.browser

PANEL = ".nbt-monitor"
RUN = """import time
from memory_run import MemoryRun, made_up_step
from nbtune import events as ev
from nbtune.widgets import monitor
run = MemoryRun("demo", total_steps=100_000)
panel = monitor(run)
sent = [0, 0]
publish = panel.comm.publish_msg
def counted(msg_type, data=None, metadata=None, buffers=None, **keys):
    sent[0] += 1
    sent[1] += len(repr(data)) + sum(len(buffer) for buffer in buffers or [])
    return publish(msg_type, data, metadata, buffers, **keys)
panel.comm.publish_msg = counted
panel"""
SECOND = """import json
before, used = list(sent), time.process_time()
for _ in range(40):  # two seconds of 20 events each
    run.say(made_up_step(run.step + 1, 100_000)); time.sleep(0.05)
print(json.dumps([sent[0] - before[0], sent[1] - before[1], time.process_time() - used]))"""


ASK = """async (code) => {
    const { kernel } = window.jupyterapp.shell.currentWidget.sessionContext.session;
    const asked = kernel.requestExecute({ code, store_history: false });
    let text = "";
    asked.onIOPub = ({ header, content }) => { if (header.msg_type === "stream") text += content.text; };
    await asked.done;
    return text;
}"""


def two_seconds(page):
    """[messages, bytes, seconds of the kernel's processors] of two seconds with 20 events each."""
    return json.loads(page.page.evaluate(ASK, SECOND))


def await_seen(page, seen):
    while page.page.evaluate(ASK, "print(panel.seen)").strip() != str(seen):  # the page says so, by a message
        page.page.wait_for_timeout(50)


@pytest.mark.slow
def test_a_monitor_that_nobody_sees_costs_nothing_and_is_complete_when_it_is_seen_again(notebook, record_property):
    page = notebook([RUN, "\n".join(f"# line {k}" for k in range(200)), "panel"])
    page.run(0)
    page.page.locator(f"{PANEL}[data-plotly=true]").wait_for()
    page.page.evaluate("() => document.querySelectorAll('.jp-Notebook-footer').forEach((node) => node.remove())")
    await_seen(page, True)
    seen = two_seconds(page)
    assert seen[0] >= 6  # four a second

    figures = {"seen": seen}
    page.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.scrollToItem(2, 'start')")
    await_seen(page, False)
    figures["scrolled away"] = two_seconds(page)
    page.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.scrollToItem(0, 'start')")
    await_seen(page, True)
    page.page.locator(f'{PANEL}[data-points="80"]').wait_for()

    page.page.evaluate(HIDE, True)
    await_seen(page, False)
    figures["in a tab behind another"] = two_seconds(page)
    page.page.evaluate(HIDE, False)
    await_seen(page, True)
    page.page.locator(f'{PANEL}[data-points="120"]').wait_for()

    page.command("notebook:clear-all-cell-outputs")
    page.page.locator(PANEL).wait_for(state="detached")
    await_seen(page, False)
    figures["its output cleared"] = two_seconds(page)
    page.run(2)
    page.page.locator(f'{PANEL}[data-points="160"]').wait_for()

    record_property("messages, bytes, processor seconds in two seconds", figures)
    print(figures)  # seen with -s
    for name in list(figures)[1:]:
        assert figures[name][:2] == [0, 0], name


# Chromium without a window has no tabs behind others: the page is told what it would be told.
HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""
