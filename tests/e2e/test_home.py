"""The home in a real JupyterLab: nothing, some, two hundred runs; opened, compared, resumed, deleted by clicks."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

RUNS = """import os, pathlib, shutil, tempfile
root = os.environ["NBTUNE_RUNS"] = tempfile.mkdtemp()
from memory_run import made_up_step
from nbtune import events as ev
from nbtune.spec import RunSpec
from nbtune.store import folder
from nbtune.store.event_log import EventWriter
def made(name, state, steps=40, called=""):
    path = folder.create(pathlib.Path(root), name, RunSpec(data="rows", model="HuggingFaceTB/SmolLM2-135M-Instruct"))
    if called:
        path = path.rename(path.with_name(f"{called}-{path.name[-6:]}"))
    write = EventWriter(path / "events.jsonl", owner=False)
    write(ev.State(state="running", total_steps=40))
    for k in range(1, steps + 1):
        write(made_up_step(k, 40))
        if k % 20 == 0:
            write(ev.Eval(step=k, loss=2.5 / k, best=True))
    write(ev.State(state=state, step=steps))
"""
SOME = (
    RUNS
    + """made("first", "finished")
made("second", "finished", 13)
made("short", "stopped", 4)
made("odd", "failed", 0)
for name in ("客服问答", "🚀 rocket", "تدريب النموذج", "<img src=x onerror=globalThis.hacked=1>", "name-" + "w" * 150):
    made("x", "finished", 25, called=name)
bad = next(pathlib.Path(root).glob("odd-*")).with_name("bad-abcdef")
shutil.copytree(next(pathlib.Path(root).glob("odd-*")), bad)
(bad / "plan.json").write_text("[")
made("lost", "running", 25)"""
)
HOME = "%load_ext nbtune\n%nbtune"
PANEL = ".nbt-home"


def opened(notebook, cells, width=1400):
    page = notebook([*cells, HOME], width=width)
    for k in range(len(cells) + 1):
        page.run(k)
    return page, page.page.locator(PANEL)


@pytest.mark.slow
def test_no_runs_at_all_is_one_button(notebook):
    page, panel = opened(notebook, [RUNS])
    expect(panel).to_contain_text("No runs yet")
    expect(panel.locator("button:visible")).to_have_count(1)
    assert page.looks("home-none", PANEL) == []
    panel.get_by_role("button", name="New run").click()
    expect(panel.locator(".nbt-form")).to_be_visible()
    panel.get_by_role("button", name="All runs").click()
    expect(panel.locator(".nbt-form")).to_have_count(0)
    expect(panel.get_by_role("button", name="New run")).to_be_focused()


@pytest.mark.slow
def test_runs_of_every_kind_are_opened_compared_and_deleted(notebook):
    page, panel = opened(notebook, [SOME])
    rows = panel.locator("tbody tr")
    expect(rows).to_have_count(11)
    expect(rows.nth(5).locator(".nbt-figure")).not_to_have_text("–")
    assert page.page.evaluate("globalThis.hacked") is None
    lost = rows.first
    expect(lost.locator(".nbt-state")).to_have_text("interrupted")
    expect(lost.locator("button.nbt-btn:visible")).to_have_text(["Start again"])  # one thing is to be done
    expect(panel.locator(".nbt-main:visible")).to_have_text(["Start again"])  # there is no checkpoint
    expect(panel.locator("tbody tr", has_text="cannot be read").locator("button.nbt-btn:visible")).to_have_count(0)
    assert page.looks("home", PANEL) == []
    for width in (700, 1400):
        page.page.set_viewport_size({"width": width, "height": 1100})
        page.picture(f"home-{width}", panel)

    expect(panel.get_by_role("button", name="Compare")).to_be_disabled()
    for name in ("first", "second"):
        panel.get_by_role("checkbox", name=f"Tick {name}").check()
    panel.get_by_role("button", name="Compare").click()
    expect(panel.locator(".nbt-compare[data-plotly=true] .scatterlayer .trace")).to_have_count(2)
    expect(panel.locator("tbody tr[data-key]:visible")).to_have_count(0)
    page.picture("home-compare", panel)
    panel.get_by_role("button", name="All runs").click()
    panel.get_by_role("button", name="Open first", exact=True).first.click()
    expect(panel.locator('.nbt-monitor .nbt-state[data-state="finished"]')).to_be_visible()
    page.picture("home-monitor", panel)
    panel.get_by_role("button", name="All runs").click()

    # deleted, after one question
    expect(panel.get_by_role("checkbox", name="Tick second")).to_be_checked()
    panel.get_by_role("checkbox", name="Tick first").uncheck()
    panel.locator("[data-do=delete]").click()
    expect(panel.locator(".nbt-box")).to_contain_text(re.compile(r"Delete second\? .*B on the disk"))
    expect(panel.get_by_role("button", name="Keep")).to_be_focused()
    page.picture("home-delete", panel)
    page.page.keyboard.press("Escape")
    expect(panel.locator(".nbt-box")).to_be_hidden()
    expect(rows).to_have_count(11)
    panel.locator("[data-do=delete]").click()
    panel.locator("[data-do=sure]").click()
    expect(rows).to_have_count(10)
    expect(panel.get_by_role("checkbox", name="Tick second")).to_have_count(0)


def test_two_hundred_runs_are_searched(notebook):
    many = "made('run', 'finished', 6)\nfirst = next(pathlib.Path(root).glob('run-*'))\n"
    many += (
        'for k in range(199): shutil.copytree(first, first.with_name(f\'{"needle" if k == 150 else "run"}-{k:06x}\'))'
    )
    page, panel = opened(notebook, [RUNS + many])
    rows = panel.locator("tbody tr")
    expect(panel).to_have_attribute("data-runs", "200")
    expect(rows).to_have_count(20)
    page.picture("home-200", panel)
    panel.get_by_label("Search runs").fill("needle")
    expect(rows).to_have_count(1)
    panel.get_by_label("Search runs").fill("no such")
    expect(panel).to_contain_text("No run of that name")
    panel.get_by_label("Search runs").fill("")
    panel.get_by_role("button", name="Show all 200").click()
    expect(rows).to_have_count(200)


RESUMED = """rows = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(24)]
import nbtune, os, tempfile
os.environ["NBTUNE_RUNS"] = tempfile.mkdtemp()
run = nbtune.finetune(data="rows", rows=globals(), steps=30, batch_size=2, name="again", detach=True)
while run.step < 3:
    pass
run.stop(wait=True)"""


@pytest.mark.slow
def test_a_stopped_run_is_resumed_and_asked_from_home(notebook):
    page, panel = opened(notebook, [RESUMED])
    panel.get_by_role("button", name="Resume again").click()
    panel.locator('.nbt-monitor .nbt-state[data-state="finished"]').wait_for()
    panel.get_by_role("button", name="All runs").click()
    expect(panel.locator("tbody .nbt-state")).to_have_text("finished")
    panel.get_by_role("button", name="Chat again").click()
    expect(panel.locator(".nbt-chatpanel")).to_be_visible()
    panel.get_by_role("button", name="All runs").click()
    panel.get_by_role("button", name="Export again").click()
    expect(panel.locator(".nbt-exportpanel")).to_be_visible()
    page.run_code("print(run.name, run.state)")  # what is opened is `run` in the notebook
    expect(page.page.get_by_text("again finished", exact=True)).to_be_visible()
