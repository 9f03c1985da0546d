"""The storyboard from nothing: load, look at a CSV, fill in the form, start, pause, resume, chat, export, compare.

In JupyterLab with the mouse, in JupyterLab with the keyboard alone, and in Notebook 7 where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from typing import Any

import pytest
from lab import Lab
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CSV = "prompt,completion\n" + "".join(f'"Who are you, {k}?","Ahoy! I am Captain Tune."\n' for k in range(80))
CELLS = [
    "%load_ext nbtune",
    "%nbtune data crew.csv",
    "%finetune",
    "run = nbtune.attach('walk')\nsum(k * k for k in range(2_000_000))",
    "run.wait().chat()",
    "%nbtune export --gguf q8_0",
    "second = nbtune.finetune(run.spec, steps=20, name='second').wait()\nnbtune.widgets.compare([run, second])",
]


def by_mouse(page: Any) -> tuple[Any, Any]:
    def fill(where: Any, text: str) -> None:
        where.fill(text)

    def press(where: Any) -> None:
        where.click()

    return fill, press


def by_keyboard(page: Any) -> tuple[Any, Any]:
    """Tab to it within its panel, whose first control has the focus at the start; then type."""

    def reach(where: Any) -> None:
        where.wait_for()
        panel = where.locator("xpath=ancestor::section[contains(@class, 'nbt ')][1]")
        if not panel.evaluate("(node) => node.contains(document.activeElement)"):
            panel.locator("button, input, select, textarea, summary, [tabindex]").first.evaluate(
                "(node) => node.focus()"
            )
        for _ in range(80):
            if where.evaluate("(node) => node === document.activeElement"):
                return
            page.page.keyboard.press("Tab")
        raise AssertionError("Tab does not reach it")

    def fill(where: Any, text: str) -> None:
        reach(where)
        page.page.keyboard.press("Control+a")
        page.page.keyboard.type(text)

    def press(where: Any) -> None:
        reach(where)
        page.page.keyboard.press("Enter")

    return fill, press


def walk(page: Any, root: Any, how: Any) -> None:
    fill, press = how(page)
    page.page.set_default_timeout(60_000)
    (root / "crew.csv").write_text(CSV)
    page.run(0)

    page.run(1)
    inspector = page.page.locator(".nbt-inspector")
    inspector.locator(".nbt-tok.nbt-on").first.wait_for()
    press(inspector.get_by_label("Next row"))
    inspector.locator("xpath=self::*[@data-row='1']").wait_for()

    page.run(2)
    form = page.page.locator(".nbt-form")
    fill(form.get_by_label("Data", exact=True), "crew.csv")
    page.page.locator(".nbt-form[data-costs=known]").wait_for()
    press(form.locator("summary", has_text="YAML"))
    fill(form.locator("textarea"), "model: nbtune/tiny\ndata: crew.csv\nsteps: 120\nbatch_size: 2\n")
    fill(form.get_by_label("Name", exact=True), "walk")
    press(form.get_by_role("button", name="Start"))  # at once: what was typed last counts
    monitor = page.page.locator(".nbt-monitor")
    monitor.wait_for()
    monitor.locator(".nbt-chart-loss").scroll_into_view_if_needed()
    expect(monitor).to_have_attribute("data-points", re.compile("[1-9]"))

    press(monitor.locator("[data-do=pause]"))
    monitor.locator('.nbt-state[data-state="paused"]').wait_for()
    page.run_code("nbtune = __import__('nbtune')")
    page.run(3)
    assert page.output(3).strip() == str(sum(k * k for k in range(2_000_000)))
    press(monitor.locator("[data-do=pause]"))
    monitor.locator('.nbt-state[data-state="finished"]').wait_for()
    assert monitor.get_attribute("data-points") == "120"
    assert monitor.locator(".nbt-chart-loss .scatterlayer .trace").count() >= 2
    page.picture(f"walk-{how.__name__}-{page.lab.app}")

    page.run(4)
    chat = page.page.locator(".nbt-chatpanel")
    fill(chat.get_by_label("Ask both…"), "Who are you, 7?")
    press(chat.get_by_role("button", name="Ask"))
    expect(chat.locator(".nbt-answer")).to_have_count(2)
    expect(chat.get_by_text("thinking…")).to_have_count(0)

    before = set((root / "runs").glob("walk-*/exports/*q8_0.gguf"))  # of the walk before
    page.run(5)
    assert "q8_0" in page.output(5)
    assert len(set((root / "runs").glob("walk-*/exports/*q8_0.gguf")) - before) == 1

    page.run(6)
    page.page.locator(".nbt-compare[data-plotly=true]").wait_for()
    expect(page.page.locator(".nbt-compare .scatterlayer .trace")).to_have_count(2)


@pytest.mark.parametrize("how", [by_mouse, by_keyboard])
def test_in_jupyterlab(notebook, lab, how):
    walk(notebook(CELLS), lab.root, how)


def test_in_notebook_7(browser, tmp_path):
    """NBTUNE_TEST_NOTEBOOK may name the python of another environment that has Notebook 7, anywidget and ipywidgets."""
    python = os.environ.get("NBTUNE_TEST_NOTEBOOK", "")
    if not python and importlib.util.find_spec("notebook") is None:
        pytest.skip("Notebook 7 is not installed")
    where = {"python": python, "kernel": sys.executable} if python else {}
    with Lab(tmp_path, app="notebook", **where) as lab:
        page = browser.open(lab, CELLS)
        walk(page, lab.root, by_mouse)
        own = "Cannot read properties of undefined (reading 'schema')"  # Notebook's, also without nbtune
        assert [each for each in page.complaints if each != own] == []
        page.close()
        lab.stop_kernels()
