"""Somebody who only clicks, in a real JupyterLab: from a CSV with columns of one's own to a model that is asked, taken
home, pushed (to a Hub of the test's own), trained again, compared, and trained on without its worst row.

Nothing is typed but the file's name in the browser's dialog, and the question to the model. Each click is counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.support.fake_hub import TOKEN, FakeHub, client_environment

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CSV = "Kundenfrage,Antwort\n" + "".join(
    f'"Wie lange dauert Lieferung {k}?","Lieferung {k} dauert zwei Tage."\n' for k in range(60)
)
BEGIN = "import os, tempfile\nos.environ.update(ENVIRONMENT)\n%load_ext nbtune\n%nbtune"


class Clicks:
    """Clicks, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, where: Any) -> None:
        where.click()
        self.count += 1

    def since(self) -> int:
        """How many there were since this was asked last."""
        count, self.count = self.count, 0
        return count


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as served:
        yield served


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    """Of a kernel whose user is logged in, with a folder of runs of its own."""
    home = tmp_path / "hub-home"
    (home / "hf").mkdir(parents=True)
    (home / "hf" / "token").write_text(TOKEN)
    wanted = client_environment(hub, home, None)
    wanted = {key: value for key, value in wanted.items() if key.startswith("HF_")}
    return {**wanted, "HF_HUB_OFFLINE": "0", "NBTUNE_RUNS": "walk-runs"}


def test_from_a_csv_to_a_model_that_is_taken_home_by_clicks_alone(notebook, lab, hub, environment, tmp_path):
    page = notebook([BEGIN.replace("ENVIRONMENT", repr(environment))], width=1400)
    click = Clicks()
    file = tmp_path / "kunden.csv"
    file.write_text(CSV)
    page.page.locator(".jp-CodeCell").first.click()
    click(page.page.get_by_role("button", name="Run this cell and advance").first)
    home = page.page.locator(".nbt-home")

    # a new run: rows, their columns, a model, Start
    click(home.get_by_role("button", name="New run"))
    form = home.locator(".nbt-form")
    with page.page.expect_file_chooser() as chooser:
        click(form.get_by_role("button", name="Choose a file…"))
    chooser.value.set_files(str(file))
    click.count += 2  # the file, and "Open"
    click(form.get_by_role("button", name="Use Kundenfrage → prompt, Antwort → completion"))
    expect(form.locator(".nbt-example .nbt-on")).to_have_count(6)  # the masks of three rows
    click(form.locator(".nbt-pick[data-model='nbtune/tiny']"))
    start = form.get_by_role("button", name="Start")
    expect(start).to_be_enabled()
    expect(start).to_be_in_viewport()
    click(start)
    assert click.since() <= 12
    monitor = form.locator(".nbt-monitor").first
    monitor.locator('.nbt-state[data-state="finished"]').wait_for()
    page.picture("clicks-finished", home)

    # asked
    click(monitor.locator("[data-do=chat]"))
    chat = monitor.locator(".nbt-chatpanel")
    chat.get_by_label("Ask both…").fill("Wie lange dauert Lieferung 7?")
    click(chat.get_by_role("button", name="Ask"))
    expect(chat.get_by_role("button", name="Ask")).to_be_enabled()
    expect(chat.locator(".nbt-answer")).to_have_count(2)
    expect(chat.get_by_text("thinking…")).to_have_count(0)
    assert click.since() <= 2

    # a GGUF by a link
    click(monitor.locator("[data-do=export]"))
    export = monitor.locator(".nbt-exportpanel")
    click(export.get_by_role("button", name="Make GGUF"))
    link = export.get_by_role("link", name="Download").first
    link.wait_for()
    with page.page.expect_download() as download:
        click(link)
    assert click.since() <= 3
    got = tmp_path / "got.gguf"
    download.value.save_as(got)
    made = next((lab.root / "walk-runs").glob("run-*/exports/*.gguf"))
    assert got.read_bytes() == made.read_bytes()
    assert got.read_bytes()[:4] == b"GGUF"
    assert page.looks("clicks-export", ".nbt-exportpanel") == []

    # pushed: the account and the run's name stand there already
    click(monitor.locator("[data-do=push]"))
    expect(export.get_by_label("Repository")).to_be_focused()
    expect(export.get_by_label("Repository")).to_have_value("ada/run")
    click(export.get_by_role("button", name="Push", exact=True))
    expect(export.locator(".nbt-files a", has_text="/ada/run")).to_be_visible()
    assert click.since() <= 3
    assert "adapter_model.safetensors" in hub.files("ada/run")
    assert hub.repos["ada/run"].private

    # a second run of the same form, compared with the first
    click(start)
    second = form.locator(".nbt-monitor").first
    expect(form.locator('.nbt-monitor .nbt-state[data-state="finished"]')).to_have_count(2)
    expect(second.locator(".nbt-head .nbt-name")).to_have_text("run-2")
    click(second.locator("[data-do=compare]"))
    expect(second.locator(".nbt-compare[data-plotly=true] .scatterlayer .trace")).to_have_count(2)
    expect(second.get_by_role("note")).to_be_hidden()  # one model: the same tokens
    assert click.since() <= 2

    # its worst row is left out, and it goes on
    click(second.locator("[data-do=losses]"))
    losses = second.locator(".nbt-losses")
    expect(losses).to_have_attribute("data-busy", "false")
    click(losses.locator("tbody tr [data-act=drop]").first)
    click(losses.get_by_role("button", name="Continue with this"))
    expect(losses.locator('.nbt-monitor .nbt-state[data-state="finished"]')).to_be_visible()
    assert click.since() <= 3

    # all three are at home
    click(home.get_by_role("button", name="All runs"))
    expect(home.locator("tbody .nbt-state", has_text="finished")).to_have_count(3)
    expect(home.locator("tbody tr").first.get_by_text(re.compile("best held-out"))).to_be_visible()
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
