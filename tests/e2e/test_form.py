"""The form in a real JupyterLab: typed, checked, planned, started, and its run watched below it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

CELL = """import nbtune
from nbtune.widgets import form
rows = [{"prompt": f"Who are you, {k}?", "completion": f"Ahoy {k}!"} for k in range(40)]
panel = form(nbtune.plan, nbtune.finetune, globals())
panel"""


def test_a_run_by_keyboard(notebook, lab):
    page = notebook([CELL, "print(panel.spec.steps, panel.run.name)"], width=1000)
    page.run(0)
    panel = page.page.locator(".nbt-form")
    expect(panel.locator("[data-step=data] .nbt-error")).to_contain_text("Choose a file")
    page.picture("form-first", panel)

    panel.get_by_label("Data", exact=True).focus()
    page.page.keyboard.type("rows")
    page.page.locator(".nbt-form[data-costs=known]").wait_for()
    expect(panel.locator(".nbt-cost")).to_contain_text("RAM")
    panel.get_by_label("How careful").focus()
    page.page.keyboard.press("q")  # quick check
    page.page.wait_for_function("() => document.querySelector('.nbt-form textarea').value.includes('steps: 30')")

    # the YAML fills the fields, too, and errors name the line
    panel.locator("summary", has_text="YAML").click()
    yaml = panel.locator("textarea")
    yaml.fill("model: nbtune/tiny\ndata: rows\nsteps: 12\nlerning_rate: 1")
    panel.locator(".nbt-error", has_text="line 4").wait_for()
    page.picture("form-error", panel)
    yaml.fill("model: nbtune/tiny\ndata: rows\nsteps: 12\nadapter: {r: 8}")
    expect(panel.locator("[data-key='adapter.r'] input")).to_have_value("8")
    expect(panel.locator(".nbt-slider", has_text="Adapter: rank").locator("output")).to_have_text("8")
    yaml.press("Control+End")
    page.page.keyboard.type("\nepochs: 2")  # Lab takes Enter, and undoing, from whatever field is in a cell
    panel.locator(".nbt-error", has_text="epochs").wait_for()
    page.page.keyboard.press("Control+z")
    expect(yaml).not_to_have_value(re.compile("epochs: 2"))
    yaml.fill("model: nbtune/tiny\ndata: rows\nsteps: 12\nadapter: {r: 8}")
    expect(panel.locator(".nbt-error:visible")).to_have_count(0)
    page.page.locator(".nbt-form[data-costs=known]").wait_for()
    panel.locator("summary", has_text="whole plan").click()
    panel.locator("summary", has_text="All settings").click()
    expect(panel.locator(".nbt-pick").nth(5)).to_be_visible()
    assert page.looks("form", ".nbt-form") == []

    # a file that is uploaded lies beside the notebook and is used
    panel.locator("input[type=file]").set_input_files(
        {"name": "more.jsonl", "mimeType": "text/plain", "buffer": b'{"prompt": "a", "completion": "b"}\n' * 30}
    )
    page.page.wait_for_function("() => document.querySelector('.nbt-form textarea').value.includes('more.jsonl')")
    assert (lab.root / "more.jsonl").stat().st_size > 100

    panel.get_by_label("Name", exact=True).fill("clicked")
    panel.get_by_role("button", name="Start").press("Enter")
    page.page.locator('.nbt-monitor .nbt-state[data-state="finished"]').wait_for()
    page.run(1)
    assert page.output(1).strip() == "12 clicked"

    # the same spec as a cell of one's own, below the form
    panel.get_by_role("button", name="Insert as cell").press("Enter")
    cells = page.page.locator(".jp-Notebook .jp-CodeCell")
    expect(cells).to_have_count(3)
    expect(cells.nth(1)).to_contain_text("%%finetune --name clicked")
    expect(cells.nth(1)).to_contain_text("data: more.jsonl")


CSV = "Kundenfrage,Antwort\n" + "".join(
    f'"Wie lange dauert Lieferung {k}?","Lieferung {k} dauert zwei Tage."\n' for k in range(60)
)


class Clicker:
    """Somebody who only clicks; counts what was clicked."""

    def __init__(self, page):
        self.page, self.clicks = page, 0

    def __call__(self, where):
        where.click()
        self.clicks += 1

    def choose(self, where, value):
        where.select_option(value)
        self.clicks += 2  # one opens it, one chooses

    def choose_file(self, where, file):
        with self.page.expect_file_chooser() as chooser:
            self(where)
        chooser.value.set_files(str(file))
        self.clicks += 2  # the file, and "Open"


@pytest.mark.slow
@pytest.mark.parametrize("offered", [True, False], ids=["as offered", "column by column"])
def test_a_csv_with_columns_of_ones_own_by_clicks_alone(notebook, tmp_path, offered):
    page = notebook(["%load_ext nbtune\n%finetune"], width=1400)
    click = Clicker(page.page)
    (tmp_path / "kunden.csv").write_text(CSV)
    page.page.locator(".jp-CodeCell").first.click()
    click(page.page.get_by_role("button", name="Run this cell and advance").first)
    form = page.page.locator(".nbt-form")
    click.choose_file(form.get_by_role("button", name="Choose a file…"), tmp_path / "kunden.csv")
    expect(form.locator(".nbt-example")).to_have_count(3)
    if offered:
        click(form.get_by_role("button", name="Use Kundenfrage → prompt, Antwort → completion"))
    else:
        click.choose(form.get_by_label("prompt", exact=True), "Kundenfrage")
        expect(form.get_by_label("prompt", exact=True)).to_have_value("Kundenfrage")
        click.choose(form.get_by_label("completion", exact=True), "Antwort")
    expect(form.locator(".nbt-example .nbt-on")).to_have_count(6)  # each answer, and what ends it
    expect(form.locator(".nbt-example .nbt-on").nth(4)).to_have_text("Lieferung 2 dauert zwei Tage.")
    click(form.locator(".nbt-pick[data-model='nbtune/tiny']"))
    start = form.get_by_role("button", name="Start")
    expect(start).to_be_enabled()
    expect(start).to_be_in_viewport()
    page.picture(f"form-csv-{offered}", form)
    click(start)
    page.page.locator('.nbt-monitor .nbt-state[data-state="finished"]').wait_for()
    assert click.clicks <= 12


@pytest.mark.slow
def test_what_is_wrong_is_mended_by_a_click_and_every_key_is_found(notebook):
    page = notebook([CELL, "panel.spec"], width=1400)
    page.run(0)
    form = page.page.locator(".nbt-form")
    form.get_by_role("button", name="rows", exact=True).click()
    page.page.locator(".nbt-form[data-costs=known]").wait_for()
    form.locator("summary", has_text="All settings").click()
    search = form.get_by_label("Search settings")
    keys = form.locator(".nbt-settings [data-key]").evaluate_all("(all) => all.map((each) => each.dataset.key)")
    assert len(keys) > 30
    for key in keys:
        search.fill(key)
        expect(form.locator(f".nbt-settings [data-key='{key}']")).to_be_visible()
    search.fill("num_train_epochs")  # as others call it
    expect(form.locator(".nbt-settings [data-key]:visible")).to_have_count(1)
    search.fill("trust_remote_code")
    expect(form.get_by_text("can be written as YAML below")).to_be_visible()
    search.fill("epochs")
    form.locator("[data-key=epochs] input").fill("2")
    form.locator("[data-key=steps] input").fill("5")
    error = form.locator("[data-step=train] .nbt-error")
    expect(error).to_contain_text("exclude each other")
    page.picture("form-mend", form)
    error.get_by_role("button", name="Leave out epochs").click()
    expect(error).to_be_hidden()
    expect(form.locator("[data-key=epochs] input")).to_have_value("")
    page.page.locator(".nbt-form[data-costs=known]").wait_for()
    slider = form.locator(".nbt-slider", has_text="Steps")
    slider.get_by_role("slider").press("End")
    expect(form.locator("[data-key=steps] input")).to_have_value("500")  # ten times the plan

    # two runs, two monitors
    form.locator("[data-key=steps] input").fill("3")
    page.page.locator(".nbt-form[data-costs=known]").wait_for()
    for count in (1, 2):
        form.get_by_role("button", name="Start").click()
        expect(form.locator('.nbt-monitor .nbt-state[data-state="finished"]')).to_have_count(count)
    assert page.complain(".nbt-form") == []


@pytest.mark.slow
def test_a_value_far_from_usual_is_told_beside_the_sliders_and_taken_back_by_a_click(notebook):
    odd = "{**panel.values, 'data': 'rows', 'learning_rate': 1000, 'warmup_ratio': 0.9}"
    page = notebook([CELL, f"panel.values = {odd}\npanel.do_check(panel.values)"], width=1400)
    page.run(0)
    page.run(1)
    form = page.page.locator(".nbt-form")
    told = form.locator("[data-step=train] .nbt-findings li")
    expect(told).to_have_count(2)
    expect(told.first).to_contain_text("learning_rate: 1000 is far above what is usual")
    rate = form.locator(".nbt-slider", has_text="Learning rate")
    expect(rate.locator("small")).to_have_text("")  # nobody has asked the plan yet what it would choose
    page.picture("form-unusual", form)
    assert page.looks("form-unusual", ".nbt-form") == []
    told.last.get_by_role("button", name="Leave out warmup_ratio").click()
    expect(told).to_have_count(1)
    rate.get_by_role("button", name="back to automatic").click()
    expect(told).to_have_count(0)
    expect(rate.locator("small")).to_have_text("what the plan chose")
    rate.get_by_role("slider").press("ArrowRight")
    expect(rate.locator("small")).to_have_text("near what the plan chose")
    assert page.complain(".nbt-form") == []
