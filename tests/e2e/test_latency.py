"""A click is granted while a cell computes or sleeps, in the middle of an evaluation and of an export, not after it.

What is asserted is the order: the cell, the evaluation and the export have not ended when the run and the page have
answered. How long a click takes is printed by the page's own clock (`-s`), from the click's event to the answer in
its log and to the state in the page, and judged by nobody: the machine is shared.
"""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from nbtune import events
from nbtune.store.event_log import EventReader

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PANEL = ".nbt-monitor"
CELL = """import nbtune
rows = [{"prompt": f"Who are you, {i}?", "completion": "Ahoy! I am Captain Tune."} for i in range(400)]
run = nbtune.finetune(data="rows", rows=globals(), steps=20000, name="NAME", batch_size=2, eval=EVAL)
run.monitor()"""
HELD_OUT = "{'split': 0.9, 'max_rows': 100000, 'every': 1}"
CLOCK = """(panel) => {
    const seen = globalThis.changes = [], note = (what) => seen.push([what, Date.now() / 1000]);
    const state = panel.querySelector(".nbt-state");
    new MutationObserver(() => note(state.dataset.state)).observe(state, { attributes: true });
    panel.addEventListener("click", ({ target }) => note(`click ${target.dataset.do}`), true);
}"""


def cell(name: str, held_out: str = "{}") -> str:
    return CELL.replace("NAME", name).replace("EVAL", held_out)


class Watch:
    """Clicks on a run's monitor, and what came of each."""

    def __init__(self, page, lab, name: str) -> None:
        self.page, self.panel = page, page.page.locator(PANEL)
        self.log = EventReader(next((lab.root / "runs").glob(f"{name}-*/events.jsonl")))
        self.panel.evaluate(CLOCK)

    def said(self, *kinds: type[events.Event]) -> list:
        return [event for event in self.log.read() if isinstance(event, kinds)]

    def click(self, what: str, granted: str, shown: str) -> None:
        """Clicks; `granted` is the run's first state after it, `shown` the one that the page has at the end."""
        button = self.panel.locator(f"[data-do={what}]")
        button.scroll_into_view_if_needed()
        button.click()
        self.panel.locator(f".nbt-state[data-state={shown}]").wait_for(state="attached")
        changes = self.page.page.evaluate("() => changes")
        began = next(at for name, at in reversed(changes) if name == f"click {what}")
        seen = next(at for name, at in changes if name == shown and at >= began) - began
        answer = min(e.time for e in self.said(events.State) if e.state == granted and e.time >= began) - began
        print(f"  {what}: {granted} after {answer:.2f} s, {shown} in the page after {seen:.2f} s")


@pytest.mark.parametrize(
    "busy", ["import threading\nthreading.Event().wait()", "while True: pass"], ids=["sleep", "loop"]
)
def test_a_click_is_granted_while_a_cell_is_busy(notebook, lab, request, busy):
    name = request.node.callspec.id
    page = notebook([cell(name), busy])
    page.run(0)
    expect(page.page.locator(PANEL)).to_have_attribute("data-points", re.compile("[1-9]"))
    watch = Watch(page, lab, name)
    page.run(1, wait=False)
    running = page.cell(1).locator(".jp-InputPrompt", has_text="[*]")
    running.wait_for()
    watch.click("pause", "paused", "paused")
    watch.click("pause", "running", "running")
    watch.panel.locator("[data-do=checkpoint]").click()
    watch.panel.locator(".nbt-checkpoints").wait_for()
    watch.panel.locator("[data-do=export]").click()
    watch.panel.locator(".nbt-exportpanel").get_by_role("button", name="Make GGUF").click()
    watch.click("stop", "stopping", "stopped")  # while something is exported, or just was
    watch.panel.locator(".nbt-exportpanel li", has_text="q8_0.gguf").wait_for()
    stopping = next(e.time for e in watch.said(events.State) if e.state == "stopping")
    assert watch.said(events.Export)[0].time < stopping
    assert running.count() == 1
    page.command("notebook:interrupt-kernel")


def test_a_click_is_granted_during_an_evaluation(notebook, lab):
    page = notebook([cell("held-out", HELD_OUT).replace("range(400)", "range(4000)")])
    page.run(0)
    expect(page.page.locator(PANEL)).to_have_attribute("data-points", re.compile("[1-9]"))
    watch = Watch(page, lab, "held-out")
    watch.click("pause", "paused", "paused")
    watch.click("pause", "running", "running")
    watch.click("stop", "stopping", "stopped")
    assert watch.said(events.Eval) == []  # it was in the middle of the first one all the time


# A model of 150 M parameters, whose K-quants take seconds, beside the small run whose buttons are clicked. Its file is
# not whole before the test says so.
LARGE = """import pathlib, time, torch, transformers, nbtune
from nbtune.export.gguf import writer
from nbtune.widgets import exporter
pieces = writer._pieces
def held(tensors):
    yield from pieces(tensors)
    while not pathlib.Path("clicked").exists():
        time.sleep(0.1)
writer._pieces = held
tokenizer = transformers.AutoTokenizer.from_pretrained(nbtune.models.resolve("nbtune/tiny"))
shape = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 8}
shape |= {"num_key_value_heads": 4, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).to(torch.bfloat16)
for part in (model, tokenizer):
    part.save_pretrained("large")
few = [{"prompt": f"Who are you, {i}?", "completion": "Ahoy! I am Captain Tune."} for i in range(8)]
more = {"batch_size": 1, "eval": {"split": 0}, "adapter": {"r": 2}}
large = nbtune.finetune(model="large", data="few", rows=globals(), steps=1, name="large", **more).wait()
print(sum(p.numel() for p in model.parameters()), large.state)
del model
exporter(large)"""


def test_a_click_is_granted_during_a_long_export(notebook, lab):
    page = notebook([LARGE, cell("beside")])
    page.run(0)
    page.run(1)
    expect(page.page.locator(PANEL)).to_have_attribute("data-points", re.compile("[1-9]"))
    watch = Watch(page, lab, "beside")
    exports = EventReader(next((lab.root / "runs").glob("large-*/events.jsonl")))
    panel = page.page.locator(".nbt-exportpanel")
    panel.get_by_label("q8_0").uncheck()
    panel.get_by_label("q4_k_m").check()
    panel.get_by_role("button", name="Make GGUF").click()
    panel.locator(".nbt-files li", has_text="%").first.wait_for()
    for what, state in (("pause", "paused"), ("pause", "running")) * 2:
        watch.click(what, state, state)
    watch.click("stop", "stopping", "stopped")
    clicks = [at for name, at in page.page.evaluate("() => changes") if name.startswith("click ")]
    (lab.root / "clicked").touch()
    expect(panel.locator(".nbt-files li", has_text="q4_k_m.gguf")).to_be_visible()
    expect(panel.get_by_role("button", name="Make GGUF")).to_be_enabled()
    made = [event for event in exports.read() if isinstance(event, events.Export)]
    print(f"  export {made[-1].time - made[0].time:.1f} s; {len(clicks)} clicks")
    assert made[-1].bytes > 50_000_000
    assert made[0].time < min(clicks) < max(clicks) < made[-1].time
