"""Two hundred hostile texts through each panel: the kernel's real state, the page's real module, a real browser.

A bare page stands in for the Lab: it hands a panel its state as a widget manager does. Each text must be there as text,
nothing of it may run, and no element may come of it.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import comm
import pytest
from comm.base_comm import BaseComm
from hostile import HOSTILE
from lab import REPO

from nbtune.errors import NbtuneError
from nbtune.widgets.sanitize import clean

sys.path.insert(0, str(REPO / "tests" / "widgets"))
from memory_run import MemoryRun, made_up_step

from nbtune import events as ev

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STATIC = REPO / "nbtune" / "widgets" / "static"
AT_ONCE = 25
PAGE = """async ([module, css, plotly]) => {
    const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const style = document.createElement("style");
    style.textContent = css;
    document.head.replaceChildren(style);
    const url = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
    const make = (await import(url)).default;
    const read = (_, value) => (value?.$bytes !== undefined ? new DataView(bytes(value.$bytes).buffer) : value);
    const library = new DataView(bytes(plotly).buffer);
    globalThis.show = async (state) => {
        const listeners = new Map();
        const tell = (...words) => [...(listeners.get("msg:custom") ?? [])].forEach((listener) => listener(...words));
        const model = {
            get: (name) => state[name],
            on: (name, f) => listeners.set(name, (listeners.get(name) ?? new Set()).add(f)),
            off: (name, f) => listeners.get(name)?.delete(f),
            send: ({ t, id, ...asked }) => {
                if (t === "plotly?") setTimeout(() => tell({ t: "plotly" }, [library]));
                const value = state.answers[asked.do];
                if (value !== undefined) setTimeout(() => tell({ t: "ack", id, value }));
            },
        };
        for (const [key, value] of Object.entries(state)) {
            state[key] = Array.isArray(value) ? value.map((item) => read(key, item)) : read(key, value);
        }
        const host = document.body.appendChild(document.createElement("div"));
        const panel = make();
        const end = panel.initialize({ model });
        const close = panel.render({ model, el: host });
        const frame = () => new Promise((done) => requestAnimationFrame(done));
        for (let k = 0; k < 4; k += 1) await frame();
        if (host.querySelector(".nbt-compare, .nbt-monitor")) {
            while (!host.querySelector("[data-plotly=true]")) await frame();
        }
        for (const said of host.querySelectorAll(".nbt-said")) {  // tokens, one of them told, all as a table
            said.focus();
            for (let k = 0; k < 2; k += 1) await frame();
            said.querySelector(".nbt-piece")?.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
        }
        for (const table of host.querySelectorAll(".nbt-tokentable")) table.open = true;
        for (let k = 0; k < 3; k += 1) await frame();
        const plot = host.querySelector(".nbt-compare .js-plotly-plot");
        if (plot) {  // names of runs are also in the label that follows the mouse
            const box = plot.querySelector(".nsewdrag").getBoundingClientRect();
            plot.querySelector(".nsewdrag").dispatchEvent(new MouseEvent("mousemove",
                { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true }));
            for (let k = 0; k < 12; k += 1) await frame();
        }
        const all = (selector) => [...host.querySelectorAll(selector)];
        const bad = all("img, script, iframe, object, embed, a, math, base, link, meta, style, b, i");
        const found = {
            text: host.textContent + all("input, textarea").map((node) => node.value).join("\\n"),
            labels: all("[aria-label]").map((node) => node.getAttribute("aria-label")).join("\\n"),
            hover: host.querySelector(".hoverlayer")?.textContent ?? "",
            bad: bad.filter((node) => !node.closest("svg")).map((node) => node.outerHTML.slice(0, 100)),
            links: all("svg a, svg tspan[style*=weight]").length,
            wide: host.scrollWidth > host.clientWidth,
            hacked: globalThis.hacked !== undefined,
        };
        close();
        end();
        host.remove();
        return found;
    };
}"""


class Silent(BaseComm):
    """A comm without a kernel."""

    def publish_msg(self, *_: Any, **__: Any) -> None:
        """Nobody listens."""


@pytest.fixture(scope="module")
def bare(browser: Any) -> Iterator[Any]:
    page = browser.chromium.new_page(viewport={"width": 700, "height": 900})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    yield page
    page.close()
    assert complaints == []


def state_of(panel: Any) -> dict[str, Any]:
    hidden = ("_esm", "_css", "layout", "tooltip", "tabbable")
    state = {k: v for k, v in panel.get_state().items() if not k.startswith("_") and k not in hidden}
    state["answers"] = getattr(panel, "told", {})  # what a kernel would answer to what a page asks for
    panel.close()
    return json.loads(json.dumps(state, default=lambda data: {"$bytes": base64.b64encode(data).decode()}))


def monitor(text: str) -> tuple[Any, list[str]]:
    from nbtune.widgets import monitor

    run = MemoryRun(text)
    said = [ev.Warning(message=text, cause=text, fix=text), ev.Export(kind=text, path=text, detail=text)]
    run.say(ev.State(state="paused", detail=text), *[made_up_step(k) for k in (1, 2)], *said)
    run.say(*[ev.Sample(step=k, prompt=text, answer=text) for k in (0, 2)])
    return monitor(run), [clean(text, 200), clean(text, 500)]


def compare(text: str) -> tuple[Any, list[str]]:
    from nbtune.widgets import compare

    runs = [MemoryRun(name) for name in (text, "other")]
    runs[0].spec = runs[0].spec.model_copy(update={"samples": (text,)})
    for run in runs:
        run.say(*[made_up_step(k) for k in (1, 2, 3)], ev.State(state="stopped"))
    return compare(runs), [clean(text, 200)]


def exporter(text: str) -> tuple[Any, list[str]]:
    from nbtune.widgets import exporter

    run = MemoryRun(text)
    run.say(ev.Export(kind=text, path=text, detail=text), ev.Export(kind="a", path="", detail=text))
    run.model_card = lambda repo, what: f"# {text}\n\n| {text} |\n\n- {text}\n\n[{text}]({text})\n\n{text}"  # type: ignore[attr-defined]
    panel = exporter(run)
    panel.in_background = lambda work, _failed: work()  # type: ignore[method-assign]
    panel.do_card("me/it")
    return panel, [clean(text, 200), clean(text, 400)]


def chat(text: str) -> tuple[Any, list[str]]:
    from nbtune.widgets import chat
    from nbtune.widgets.chat_panel import _Turn

    panel, order = chat(MemoryRun(text)), [0, 1]
    answered, failed = (_Turn(k, text, order, blind=False, answers=[text, None]) for k in (0, 1))
    failed.errors = ["", panel.words(ValueError(text))]
    for side in (0, 1):
        answered.tokens[side] += [[clean(text, 80), 0.5, [[clean(text, 80), 0.25]], False]] * 3
    answered.answers[1] = text
    panel._whole = [answered, failed]
    panel._show()
    panel.told = {"tokens": panel.do_tokens(0, 0)}
    return panel, [clean(text, 8000), clean(text, 80), clean(text, 100)]


def form(text: str) -> tuple[Any, list[str]]:
    from nbtune.widgets import form

    def plan(spec: Any, rows: Any = None) -> Any:
        raise ValueError(text)

    panel = form(plan, plan)
    panel.checked = {"yaml": "", "error": None}
    panel.costs = {"state": "failed", "error": {"cause": clean(text, 600), "place": "", "fix": clean(text, 600)}}
    panel.values = {"model": clean(text, 600)}
    return panel, [clean(text, 600)]


def inspector(text: str) -> tuple[Any, list[str]]:
    from nbtune.widgets import inspect

    panel = inspect([{"prompt": text, "completion": text}] * 2, {})
    rule = {"match": clean(text, 200), "train": False, "regex": False, "rows": 2, "of": 2}
    panel.summary = panel.summary | {"rules": [rule], "undo": 1}
    judge = {"key": text, "name": clean(text, 100), "base": False}
    panel.judges, panel.judge = [judge, {"key": "base", "name": clean(text, 100), "base": True}], text
    return panel, [clean(text, 100)]


def losses(text: str) -> tuple[Any, list[str]]:
    from nbtune.store.row_losses import RowLoss
    from nbtune.widgets.losses_panel import Losses, LossesPanel

    class Known(Losses):
        """Two rows whose losses are known, of a run that has no folder."""

        def start(self) -> None:
            """Nothing is measured."""

        def text(self, row: RowLoss) -> tuple[str, str]:
            return text, text

    run = MemoryRun(text)
    run.saved_steps, run.alive = [1], False  # type: ignore[attr-defined]
    known = Known(run)
    for k in range(2):
        known.rows[text, k] = RowLoss("eval", text, k, k, f"r{k}", 9, 5, 1, 2.5 - k, 3.0)
    known.error = NbtuneError(text)
    panel = LossesPanel(known)
    panel.going = {"state": "begun", "name": clean(text, 200), "id": clean(text, 40)}
    return panel, [clean(text, 100), clean(text, 160), clean(text, 200)]


@pytest.mark.parametrize("made", [monitor, compare, exporter, chat, form, inspector, losses])
def test_hostile_text_is_text(bare, monkeypatch, tmp_path, made: Callable[[str], tuple[Any, list[str]]]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comm, "create_comm", lambda **keys: Silent(**keys))
    name = {"exporter": "export"}.get(made.__name__, made.__name__)
    bare.set_content("<body style='margin:0'></body>")
    plotly = base64.b64encode((STATIC / "plotly.mjs.gz").read_bytes()).decode()
    files = [(STATIC / each).read_text() for each in (f"{name}.js", "panels.css")]
    bare.evaluate(PAGE, [*files, plotly])
    wrong = []
    for start in range(0, len(HOSTILE), AT_ONCE):
        panels = [made(text) for text in HOSTILE[start : start + AT_ONCE]]
        states = [state_of(panel) for panel, _ in panels]
        shown = bare.evaluate(
            "async (all) => { const out = []; for (const s of all) out.push(await show(s)); return out; }", states
        )
        for k, ((_, expected), found) in enumerate(zip(panels, shown, strict=True)):
            missing = [text for text in expected if _page(text) not in found["text"] and text not in found["labels"]]
            if missing or found["bad"] or found["links"] or found["wide"] or found["hacked"]:
                wrong.append((HOSTILE[start + k][:60], missing[:1], {k: v for k, v in found.items() if k != "text"}))
            if name == "compare" and not found["hover"]:
                wrong.append(("no label", found))
    assert wrong == []


def _page(text: str) -> str:
    """A text as a page's inputs and text nodes hand it back."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
