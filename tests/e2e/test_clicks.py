"""Somebody who only clicks, in a real JupyterLab (the parts of the walk: walk.py). Each click is counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import walk
from playwright.sync_api import expect

from tests.support.fake_hub import FakeHub

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as served:
        yield served


def test_from_a_csv_to_a_model_that_is_taken_home_by_clicks_alone(notebook, lab, hub, tmp_path):
    variables = walk.environment(hub, tmp_path)
    page = notebook([walk.first_cell(variables)], width=1400)
    click = walk.Clicks()
    page.page.locator(".jp-CodeCell").first.click()
    click(page.page.get_by_role("button", name="Run this cell and advance").first)
    home = page.page.locator(".nbt-home")
    form = walk.new_run(page, home, tmp_path / "kunden.csv", click)
    assert click.since() <= 12
    monitor = form.locator(".nbt-monitor").first
    monitor.locator(walk.FINISHED).wait_for(timeout=walk.WORK)
    page.picture("clicks-finished", home)

    walk.ask(monitor, click)
    assert click.since() <= 2

    got = walk.download_gguf(page, monitor, tmp_path, click)
    assert click.since() <= 3
    made = next((lab.root / variables["NBTUNE_RUNS"]).glob("run-*/exports/*.gguf"))
    assert got == made.read_bytes()
    assert got[:4] == b"GGUF"
    assert page.looks("clicks-export", ".nbt-exportpanel") == []

    walk.push(monitor, hub, click)
    assert click.since() <= 3
    second = walk.second_run(form, click)
    assert click.since() <= 2
    walk.without_the_worst(second, click)
    assert click.since() <= 3
    walk.at_home(home, 3, click)
    page.picture("clicks-home", home)


def test_an_export_that_takes_long_is_cancelled_by_a_click(notebook, lab):
    train = """import nbtune, time
from nbtune.export.gguf import writer
from nbtune.widgets import exporter
rows = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(40)]
run = nbtune.finetune(data="rows", rows=globals(), steps=6, name="long").wait()
pieces = writer._pieces
def slowly(tensors):  # as those of a large model
    for piece in pieces(tensors):
        time.sleep(0.3)
        yield piece
writer._pieces = slowly
exporter(run)"""
    page = notebook([train], width=900)
    page.run(0)
    panel = page.page.locator(".nbt-exportpanel")
    panel.get_by_role("button", name="Make GGUF").click()
    expect(panel.locator(".nbt-files li").first).to_contain_text("%")
    page.picture("export-working", panel)
    panel.get_by_role("button", name="Cancel").click()
    expect(panel.get_by_text("Cancelled: nothing half-made is left.")).to_be_visible()
    expect(panel.locator(".nbt-files li")).to_have_count(0)
    expect(panel.get_by_role("button", name="Make GGUF")).to_be_enabled()
    folder = next((lab.root / "runs").glob("long-*/exports"))
    assert list(folder.iterdir()) == []
