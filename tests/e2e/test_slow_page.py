"""A page that is slow, as one is beside a training on the same two cores: anywidget gives up on a module after two
seconds, and tells its model nothing more. A panel hears all the same."""

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

RUN = """import nbtune
rows = [{"prompt": f"How long for {k}?", "completion": f"{k} takes two days."} for k in range(40)]
run = nbtune.finetune(model="nbtune/tiny", data="var:rows", rows={"rows": rows}, steps=2).wait()
run.monitor()"""
# a patience of no time at all
GIVES_UP = """AbortSignal.timeout = () => {
    const end = new AbortController();
    queueMicrotask(() => end.abort());
    return end.signal;
};"""


def test_panels_hear_what_the_kernel_says(notebook):
    page = notebook([RUN], width=1400)
    page.page.add_init_script(GIVES_UP)
    page.load()
    page.run(0)
    monitor = page.cell(0).locator(".nbt-monitor").first
    monitor.locator("[data-do=losses]").click()  # the panel in it is told of by a message
    losses = monitor.locator(".nbt-losses")
    expect(losses).to_have_attribute("data-busy", "false")
    expect(losses.locator("tbody tr")).to_have_count(12)
    losses.locator("[data-act=drop]").first.click()  # and the answer to a click comes, too
    expect(losses.locator("tr[data-out]")).to_have_count(1)
    page.complaints[:] = [said for said in page.complaints if "[anywidget]" not in said]  # its own, of having given up
