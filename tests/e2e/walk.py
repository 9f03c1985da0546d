"""The walk of somebody new, in parts: from a CSV with columns of one's own to a model that is asked, taken home, pushed
(to a Hub of the test's own), trained again, compared, and trained on without its worst row.

Each part takes a hand that does what is to be done: a mouse (`Clicks`), or a keyboard (`Keys`). Only the file's name is
typed, in the browser's dialog, and the question to the model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lab import Page
from playwright.sync_api import expect

from tests.support.fake_hub import TOKEN, FakeHub, client_environment

CSV = "Kundenfrage,Antwort\n" + "".join(
    f'"Wie lange dauert Lieferung {k}?","Lieferung {k} dauert zwei Tage."\n' for k in range(60)
)
QUESTION = "Wie lange dauert Lieferung 7?"
WORK = 600_000  # milliseconds that what trains, loads, exports or measures may take: a shared machine may be slow
NEXT = ".nbt-main:enabled"  # the one filled button says what comes next
FINISHED = '.nbt-state[data-state="finished"]'


def environment(hub: FakeHub, folder: Path) -> dict[str, str]:
    """Of a kernel whose user is logged in, with a folder of runs of its own."""
    home = folder / "hub-home"
    (home / "hf").mkdir(parents=True)
    (home / "hf" / "token").write_text(TOKEN)
    wanted = client_environment(hub, home, None)
    wanted = {key: value for key, value in wanted.items() if key.startswith("HF_")}
    return {**wanted, "HF_HUB_OFFLINE": "0", "NBTUNE_RUNS": f"runs-{folder.name}"}


def first_cell(variables: dict[str, str]) -> str:
    return f"import os\nos.environ.update({variables!r})\n%load_ext nbtune\n%nbtune"


class Clicks:
    """A mouse; counts its clicks."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, where: Any) -> None:
        where.click()
        self.count += 1

    def write(self, where: Any, words: str) -> None:
        where.fill(words)

    def since(self) -> int:
        """How many there were since this was asked last."""
        count, self.count = self.count, 0
        return count


class Keys:
    """A keyboard alone: Tab to where something is, then Enter. Each stop on the way shows that it has the focus."""

    MOST = 400

    def __init__(self, page: Page) -> None:
        self.page = page.page
        self.count = 0

    def __call__(self, where: Any, key: str = "Enter") -> None:
        self.to(where)
        self.page.keyboard.press(key)
        self.count += 1

    def write(self, where: Any, words: str) -> None:
        self.to(where)
        self.page.keyboard.type(words)

    def to(self, where: Any) -> None:
        """Goes there by Tab, or by Shift+Tab where it lies before; the focus was not lost before."""
        expect(where).to_be_enabled()
        if self.count:
            self.page.wait_for_function("() => document.activeElement?.closest('.nbt')", timeout=10_000)
        key = where.evaluate(_TOWARDS)
        for _ in range(self.MOST):
            if where.evaluate("(node) => node === document.activeElement"):
                return
            self.page.keyboard.press(key)
            wrong = self.page.evaluate(_UNSEEN)
            assert not wrong, f"on the way by {key}: {wrong}"
        raise AssertionError(f"{key} does not lead to {where}")

    def through(self, panel: Any, key: str = "Tab") -> int:
        """Goes through a panel, leaves it and comes back; returns its stops, which are in order."""
        panel.evaluate(_ENTER, key != "Tab")
        for stops in range(self.MOST):
            wrong = self.page.evaluate(_UNSEEN)
            assert not wrong, wrong
            last = self.page.evaluate_handle("document.activeElement")
            self.page.keyboard.press(key)
            where = panel.evaluate(_ONWARDS, last)
            if where == "left":
                self.page.keyboard.press("Shift+Tab" if key == "Tab" else "Tab")
                assert panel.evaluate("(panel) => panel.contains(document.activeElement)")
                return stops + 1
            assert where == key, f"{key} goes back to {self.page.evaluate('document.activeElement.outerHTML')[:200]}"
        raise AssertionError(f"{key} does not lead out")

    def since(self) -> int:
        count, self.count = self.count, 0
        return count


# By which key a node is reached from where the focus is.
_TOWARDS = """(node) => {
    const here = document.activeElement;
    const before = here && here.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_PRECEDING;
    return before && here !== document.body && !here.contains(node) && !node.contains(here) ? "Shift+Tab" : "Tab";
}"""
# What is wrong with the focus, where it is in a panel: nobody sees it, or it is lost.
_UNSEEN = """() => {
    const node = document.activeElement;
    if (!node?.closest(".nbt")) return "";
    const { outlineStyle, outlineWidth } = getComputedStyle(node);
    const box = node.getBoundingClientRect();
    const called = `${node.tagName} ${node.className} ${node.textContent.slice(0, 40)}`;
    if (outlineStyle === "none" || !(parseFloat(outlineWidth) > 0)) return `no outline: ${called}`;
    return box.width && box.height ? "" : `no size: ${called}`;
}"""


# Puts the focus into a panel, on the first thing that takes it, or on the last.
_ENTER = """(panel, last) => {
    const all = [...panel.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")];
    const stops = all.filter((node) => node.tabIndex >= 0 && !node.disabled && node.checkVisibility());
    stops.at(last ? -1 : 0).focus();
}"""
# Where the focus has gone from `last`: out of the panel, or by which key's direction.
_ONWARDS = """(panel, last) => {
    const here = document.activeElement;
    if (!panel.contains(here)) return "left";
    const position = last.compareDocumentPosition(here);
    return position & Node.DOCUMENT_POSITION_FOLLOWING ? "Tab" : position ? "Shift+Tab" : "stuck";
}"""


def new_run(page: Page, home: Any, file: Path, hand: Clicks | Keys, *, long: bool = False) -> Any:
    """From home to a run that has begun (a long one: of ten times the steps of the plan); returns the form."""
    file.write_text(CSV)
    hand(home.get_by_role("button", name="New run"))
    form = home.locator(".nbt-form")
    form.wait_for()
    expect(form.locator(NEXT)).to_have_text(["Choose a file…"])
    with page.page.expect_file_chooser() as chooser:
        hand(form.get_by_role("button", name="Choose a file…"))
    chooser.value.set_files(str(file))
    hand.count += 2  # the file, and "Open"
    expect(form.locator(NEXT)).to_have_text(["Use Kundenfrage → prompt, Antwort → completion"])
    hand(form.locator(NEXT))
    expect(form.locator(".nbt-example .nbt-on")).to_have_count(6)  # the masks of three rows
    hand(form.locator(".nbt-pick[data-model='nbtune/tiny']"))
    start = form.get_by_role("button", name="Start")
    expect(start).to_be_enabled()
    expect(start).to_be_in_viewport()
    if long:
        expect(form).to_have_attribute("data-costs", "known")
        form.locator(".nbt-slider", has_text="Steps").get_by_role("slider").press("End")
        expect(form.locator("[data-key=steps] input")).not_to_have_value("")
    hand(start)
    return form


def take_home(page: Page, form: Any, hub: FakeHub, folder: Path, hand: Clicks | Keys) -> None:
    """All that is done with a run that has ended, and with a second one."""
    monitor = form.locator(".nbt-monitor").first
    ask(monitor, hand)
    assert download_gguf(page, monitor, folder, hand)[:4] == b"GGUF"
    push(monitor, hub, hand)
    without_the_worst(second_run(form, hand), hand)


def stop(monitor: Any, hand: Clicks | Keys) -> None:
    """A long run is stopped where it is: its adapter is saved."""
    hand(monitor.get_by_role("button", name="Stop and save"))
    monitor.locator('.nbt-state[data-state="stopped"]').wait_for(timeout=WORK)


def ask(monitor: Any, hand: Clicks | Keys) -> None:
    """Asks both, the base and the tuned model."""
    hand(monitor.locator("[data-do=chat]"))
    chat = monitor.locator(".nbt-chatpanel")
    hand.write(chat.get_by_label("Ask both…"), QUESTION)
    hand(chat.get_by_role("button", name="Ask"))
    expect(chat.locator(".nbt-answer")).to_have_count(2)
    expect(chat.get_by_text("thinking…")).to_have_count(0, timeout=WORK)
    expect(chat.get_by_role("button", name="Ask")).to_be_enabled(timeout=WORK)  # until then Escape stops the answers


def download_gguf(page: Page, monitor: Any, folder: Path, hand: Clicks | Keys) -> bytes:
    """A GGUF by a link: the bytes that came."""
    hand(monitor.locator("[data-do=export]"))
    export = monitor.locator(".nbt-exportpanel")
    hand(export.get_by_role("button", name="Make GGUF"))
    link = export.get_by_role("link", name="Download").first
    link.wait_for(timeout=WORK)
    with page.page.expect_download() as download:
        hand(link)
    got = folder / "got.gguf"
    download.value.save_as(got)
    return got.read_bytes()


def push(monitor: Any, hub: FakeHub, hand: Clicks | Keys) -> None:
    """Pushes; the account and the run's name stand there already."""
    hand(monitor.locator("[data-do=push]"))
    export = monitor.locator(".nbt-exportpanel")
    expect(export.get_by_label("Repository")).to_be_focused()
    expect(export.get_by_label("Repository")).to_have_value("ada/run")
    hand(export.get_by_role("button", name="Push", exact=True))
    expect(export.locator(".nbt-files a", has_text="/ada/run")).to_be_visible(timeout=WORK)
    assert "adapter_model.safetensors" in hub.files("ada/run")
    assert hub.repos["ada/run"].private


def second_run(form: Any, hand: Clicks | Keys) -> Any:
    """The same form once more, compared with the first; returns its monitor."""
    before = form.locator(".nbt-monitor").count()
    hand(form.get_by_role("button", name="Start"))
    expect(form.locator(".nbt-monitor")).to_have_count(before + 1)
    second = form.locator(".nbt-monitor").first
    expect(second.locator(FINISHED)).to_be_visible(timeout=WORK)
    expect(second.locator(".nbt-head .nbt-name")).to_have_text("run-2")
    hand(second.locator("[data-do=compare]"))
    expect(second.locator(".nbt-compare[data-plotly=true] .scatterlayer .trace")).to_have_count(2)
    expect(second.get_by_role("note")).to_be_hidden()  # one model: the same tokens
    return second


def without_the_worst(monitor: Any, hand: Clicks | Keys) -> None:
    """Its worst row is left out, and it goes on."""
    hand(monitor.locator("[data-do=losses]"))
    losses = monitor.locator(".nbt-losses")
    expect(losses).to_have_attribute("data-busy", "false", timeout=WORK)
    hand(losses.locator("tbody tr [data-act=drop]").first)
    hand(losses.get_by_role("button", name="Train on with these changes"))
    expect(losses.locator(f".nbt-monitor {FINISHED}")).to_be_visible(timeout=WORK)


def at_home(home: Any, runs: int, hand: Clicks | Keys) -> None:
    """All runs stand in the list, with their best loss."""
    hand(home.get_by_role("button", name="All runs"))
    expect(home.locator("tbody .nbt-state", has_text="finished")).to_have_count(runs)
    expect(home.locator("tbody tr").first.get_by_text(re.compile("best held-out"))).to_be_visible()
