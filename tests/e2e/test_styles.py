"""All panels in one page: no button loses its words, whichever came first; the page has the style once."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.tools.pictures import CONTRASTS

pytestmark = pytest.mark.browser

BEGIN = """import nbtune
from nbtune.widgets import chat, compare, exporter
rows = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(24)]
run = nbtune.finetune(data="rows", rows=globals(), steps=6, batch_size=2, name="all").wait()"""
PANELS = {
    "form": ("nbtune.form(globals())", ".nbt-form"),
    "monitor": ("run.monitor()", ".nbt-monitor"),
    "inspector": ("nbtune.inspect(rows)", ".nbt-inspector"),
    "chat": ("chat(run)", ".nbt-chatpanel"),
    "export": ("exporter(run)", ".nbt-exportpanel"),
    "compare": ("compare([run, run])", ".nbt-compare"),
    "losses": ("run.losses()", ".nbt-losses"),
    "home": ("nbtune.home(globals())", ".nbt-home"),
}
FILLED = {"New run", "Start", "Chat", "Ask", "Make GGUF", "Train on with these changes"}  # the primary buttons


@pytest.mark.parametrize(
    "order",
    [list(PANELS), pytest.param(list(reversed(PANELS)), marks=pytest.mark.slow)],
    ids=["forwards", "backwards"],
)
def test_no_button_loses_its_words(notebook: Any, order: list[str]) -> None:
    page = notebook([BEGIN, *(PANELS[name][0] for name in order)], width=1000)
    page.page.set_viewport_size({"width": 1000, "height": 6000})  # cells that are out of sight have no node
    page.run(0)
    for k, name in enumerate(order, 1):
        page.run(k)
        page.page.locator(PANELS[name][1]).first.wait_for()
    for name in (order[-1], order[0]):
        page.run(order.index(name) + 1)  # once more: a style that comes again
    _ready(page.page)
    for look in ("light", "dark"):
        page.dark(look == "dark")
        every = ".nbt.nbt-dark" if look == "dark" else ".nbt:not(.nbt-dark)"
        expect(page.page.locator(every)).to_have_count(len(PANELS) + 1)  # a monitor has the card of its run
        page.picture(f"styles-{look}-{order[0]}-first")
        found = page.page.evaluate(CONTRASTS)
        assert {each["words"] for each in found if not each["disabled"]} >= FILLED
        assert [each for each in found if each["contrast"] < 4.5] == []
        for words in sorted(FILLED):  # under the pointer, too
            page.page.locator(".nbt-main:visible", has_text=words).first.hover()
            assert [each for each in page.page.evaluate(CONTRASTS) if each["contrast"] < 4.5] == [], words
    assert _styles(page.page) == 1


def _ready(page: Any) -> None:
    """Every primary button is there to be clicked."""
    page.locator(".nbt-form").get_by_label("Data", exact=True).fill("rows")
    expect(page.locator(".nbt-form").get_by_role("button", name="Start")).to_be_enabled()
    expect(page.locator(".nbt-finish")).to_have_attribute("data-state", "known")
    losses = page.locator(".nbt-losses").first
    expect(losses).to_have_attribute("data-busy", "false")
    losses.locator("tbody tr [data-act=drop]").first.click()
    expect(losses.locator(".nbt-main")).to_be_enabled()


def _styles(page: Any) -> int:
    return page.evaluate(
        "() => [...document.querySelectorAll('style')].filter((one) => one.textContent.includes('.nbt-btn')).length"
    )
