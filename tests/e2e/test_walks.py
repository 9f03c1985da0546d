"""The same walk (walk.py) as others take it: by keyboard alone, with a reload or a killed kernel in the middle, in
Notebook 7, and with the versions that Colab has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import walk
from lab import Browser, Lab
from playwright.sync_api import expect

from tests.notebook import hosted
from tests.support.fake_hub import FakeHub

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]  # each is a dozen waits


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as served:
        yield served


def test_by_keyboard_alone(notebook, hub, tmp_path):
    page = notebook([walk.first_cell(walk.environment(hub, tmp_path))], width=1400)
    keys = walk.Keys(page)
    page.page.locator(".jp-CodeCell .cm-content").first.focus()
    page.page.keyboard.press("Control+Enter")
    home = page.page.locator(".nbt-home")
    form = walk.new_run(page, home, tmp_path / "kunden.csv", keys)
    monitor = form.locator(".nbt-monitor").first
    monitor.locator(walk.FINISHED).wait_for(timeout=walk.WORK)
    walk.ask(monitor, keys)
    page.page.keyboard.press("Escape")  # the way back
    expect(monitor.locator(".nbt-chatpanel")).to_have_count(0)
    expect(monitor.locator("[data-do=chat]")).to_be_focused()
    assert walk.download_gguf(page, monitor, tmp_path, keys)[:4] == b"GGUF"
    walk.push(monitor, hub, keys)
    walk.without_the_worst(walk.second_run(form, keys), keys)
    assert keys.through(home) == keys.through(home, "Shift+Tab") > 100
    walk.at_home(home, 3, keys)


def begun(notebook, hub, tmp_path):
    """A long run that was begun from home and pauses: the page, the hand, home, and its monitor."""
    page = notebook([walk.first_cell(walk.environment(hub, tmp_path))], width=1400)
    click = walk.Clicks()
    page.run(0)
    home = page.page.locator(".nbt-home")
    form = walk.new_run(page, home, tmp_path / "kunden.csv", click, long=True)
    monitor = form.locator(".nbt-monitor").first
    click(monitor.locator("[data-do=pause]"))
    monitor.locator(".nbt-state[data-state=paused]").wait_for()
    return page, click, home, monitor


def test_a_reload_in_the_middle(notebook, hub, tmp_path):
    page, click, home, monitor = begun(notebook, hub, tmp_path)
    steps = home.locator(".nbt-slider", has_text="Steps").locator("output")
    chosen = steps.inner_text()
    page.save()
    page.load()
    monitor.locator(".nbt-state[data-state=paused]").wait_for()  # nothing has to be run again
    click(monitor.locator("[data-do=pause]"))
    walk.stop(monitor, click)
    form = home.locator(".nbt-form")
    assert int(chosen) > 100
    expect(steps).to_have_text(chosen)  # what was chosen stays
    form.locator(".nbt-slider", has_text="Steps").get_by_role("slider").press("Home")
    walk.take_home(page, form, hub, tmp_path, click)
    walk.at_home(home, 2, click)


def test_a_reload_of_what_was_not_saved(notebook, hub, tmp_path):
    page, click, home, _ = begun(notebook, hub, tmp_path)
    page.load()
    expect(home).to_have_count(0)
    page.run(0)
    expect(home.locator("tbody .nbt-state")).to_have_text("paused")
    click(home.get_by_role("button", name="Open run", exact=True).last)
    monitor = home.locator(".nbt-monitor")
    click(monitor.locator("[data-do=pause]"))
    walk.stop(monitor, click)
    walk.ask(monitor, click)
    click(home.get_by_role("button", name="All runs"))
    expect(home.locator("tbody .nbt-state")).to_have_text("stopped")


@pytest.mark.parametrize("by", ["home", "monitor"])
def test_the_kernel_is_killed_in_the_middle(notebook, hub, tmp_path, by):
    page, click, home, monitor = begun(notebook, hub, tmp_path)
    page.run_code("import os; os.kill(os.getpid(), 9)")
    click(page.page.get_by_role("button", name="Ok", exact=True))  # JupyterLab's own news
    expect(monitor.locator(".nbt-warn")).to_contain_text("has ended")
    expect(monitor.locator("button.nbt-btn:visible")).to_have_text(["Resume in a new cell"])  # one thing is said
    page.picture("walk-killed", home)
    if by == "home":
        page.run(0)  # what somebody does who does not look
        expect(home.locator(".nbt-main:visible")).to_have_text(["Resume"])
        click(home.get_by_role("button", name="Resume run"))
        resumed = home.locator(".nbt-monitor")
    else:
        click(monitor.get_by_role("button", name="Resume in a new cell"))
        expect(monitor.locator(".nbt-warn")).to_contain_text("run it")
        # NBTUNE_RUNS went with the kernel
        expect(page.cell(1)).to_contain_text(f"%nbtune resume runs-{tmp_path.name}/run-")
        page.run(1)
        resumed = page.cell(1).locator(".nbt-monitor")
    resumed.scroll_into_view_if_needed()  # nothing is drawn where nobody looks
    expect(resumed.locator(".nbt-list li", has_text="nearly the same as another one")).to_have_count(1)  # said once
    walk.stop(resumed, click)
    walk.ask(resumed, click)
    assert walk.download_gguf(page, resumed, tmp_path, click)[:4] == b"GGUF"


def test_in_notebook_7(browser: Browser, hub: FakeHub, tmp_path: Path) -> None:
    with Lab(tmp_path / "notebook", app="notebook") as lab:
        _walk(lab, browser, hub, tmp_path)


def test_with_colabs_versions(browser: Browser, hub: FakeHub, outside_environ: dict[str, str], tmp_path: Path) -> None:
    with Lab(tmp_path / "colab", python=str(hosted.with_a_page(outside_environ))) as lab:
        _walk(lab, browser, hub, tmp_path)


def _walk(lab: Lab, browser: Browser, hub: FakeHub, tmp_path: Path) -> None:
    page = browser.open(lab, [walk.first_cell(walk.environment(hub, tmp_path))], width=1400)
    click = walk.Clicks()
    page.run(0)
    home = page.page.locator(".nbt-home")
    form = walk.new_run(page, home, tmp_path / "kunden.csv", click)
    form.locator(".nbt-monitor").first.locator(walk.FINISHED).wait_for(timeout=walk.WORK)
    walk.take_home(page, form, hub, tmp_path, click)
    page.picture(f"walk-{lab.app}", home)
    walk.at_home(home, 3, click)
    own = "Cannot read properties of undefined (reading 'schema')"  # Notebook's, also without nbtune
    assert [each for each in page.complaints if each != own] == []
    page.close()
    lab.stop_kernels()
