"""Each panel as VS Code would show it: in a page with its theme variables and a strict content security policy.

VS Code itself does not run here. The page plays its notebook's webview: a panel's module comes as text over the
widget's channel and is imported from a blob, as anywidget does everywhere; nothing else may be loaded, nothing is
evaluated, no Jupyter is around. The Python half is the real one.
"""

from __future__ import annotations

import base64
import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ipywidgets.widgets.widget import _put_buffers
from lab import ARTIFACTS, REPO, Browser

import nbtune
from nbtune import widgets

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ADDRESS = "https://vscode-webview.test/"
# No 'unsafe-eval', no address but the page's own; `blob:` is what anywidget's own loader needs.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data: https:; "
    "font-src 'none'; connect-src 'none'"
)
THEMES = {
    "dark": {"foreground": "#cccccc", "descriptionForeground": "#9d9d9d", "editor-background": "#1f1f1f"}
    | {"sideBar-background": "#181818", "panel-border": "#2b2b2b"},
    "light": {"foreground": "#3b3b3b", "descriptionForeground": "#5f5f5f", "editor-background": "#ffffff"}
    | {"sideBar-background": "#f8f8f8", "panel-border": "#e5e5e5"},
}
HTML = """<!doctype html><html><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<style>body {{ background: var(--vscode-editor-background); margin: 8px; font: 13px sans-serif }}</style></head>
<body><div id="host"></div><script>
window.broken = [];
document.addEventListener("securitypolicyviolation", (e) => broken.push(`${{e.violatedDirective}}: ${{e.blockedURI}}`));
window.theme = (kind, values) => {{
  const {{ style }} = document.documentElement;
  for (const [name, value] of Object.entries(values)) style.setProperty(`--vscode-${{name}}`, value);
  document.body.className = `vscode-${{kind}}`;
}};
const view = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const base64 = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer.buffer ?? buffer)));
const isBytes = (value) => value?.bytes !== undefined && Object.keys(value).length === 1;
const whole = (value) => Array.isArray(value) ? value.map(whole) : isBytes(value) ? view(value.bytes) : value;
const heard = {{}};
const fire = (name, ...rest) => [...(heard[name] ?? [])].forEach((f) => f(...rest));
let state;
const model = {{
  get: (name) => state[name],
  set: (name, value) => {{ state[name] = value; }},
  save_changes() {{}},
  send: (content, _, buffers = []) => toPython(JSON.stringify(content), buffers.map(base64)),
  on: (name, f) => (heard[name] ??= new Set()).add(f),
  off: (name, f) => heard[name]?.delete(f),
}};
window.deliver = (kind, data, buffers) => {{
  if (kind === "custom") return fire("msg:custom", data, buffers.map(view));
  for (const [name, value] of Object.entries(data)) {{ state[name] = whole(value); fire(`change:${{name}}`); }}
}};
window.show = async (first, esm, css) => {{
  state = Object.fromEntries(Object.entries(first).map(([name, value]) => [name, whole(value)]));
  document.head.append(Object.assign(document.createElement("style"), {{ textContent: css }}));
  const url = URL.createObjectURL(new Blob([esm], {{ type: "text/javascript" }}));
  const module = (await import(url)).default;
  const widget = typeof module === "function" ? await module() : module;
  await widget.initialize?.({{ model }});
  await widget.render?.({{ model, el: document.getElementById("host") }});
}};
</script></body></html>"""


class Webview:
    """A page that shows one panel and carries its messages."""

    def __init__(self, browser: Browser, panel: Any, kind: str) -> None:
        self.panel, self.asked, self.complaints = panel, [], []
        self.news: queue.Queue[tuple[str, Any, list[str]]] = queue.Queue()
        panel.comm.publish_msg = self._tell
        self.page = browser.chromium.new_page(viewport={"width": 900, "height": 900})
        self.page.set_default_timeout(120_000)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.route("**/*", self._answer)
        self.page.expose_function("toPython", self._hear)
        self.page.goto(ADDRESS)
        self.theme(kind)
        state = {name: value for name, value in panel.get_state().items() if not name.startswith("_")}
        self.page.evaluate("([s, esm, css]) => show(s, esm, css)", [_plain(state), panel._esm, panel._css])

    def _answer(self, route: Any) -> None:
        if route.request.url == ADDRESS:
            route.fulfill(body=HTML.format(policy=POLICY), content_type="text/html")
        else:
            self.asked.append(route.request.url)
            route.abort()

    def _tell(self, _kind: str, data: Any = None, metadata: Any = None, buffers: Any = None, **_: Any) -> None:
        sent = [base64.b64encode(bytes(each)).decode() for each in buffers or ()]
        if (data or {}).get("method") == "custom":
            self.news.put(("custom", data["content"], sent))
        elif (data or {}).get("method") == "update":
            state = dict(data["state"])
            _put_buffers(state, data["buffer_paths"], [bytes(each) for each in buffers or ()])
            self.news.put(("update", state, []))

    def _hear(self, content: str, buffers: list[str]) -> None:
        self.panel._hear(self.panel, json.loads(content), [memoryview(base64.b64decode(each)) for each in buffers])

    def theme(self, kind: str) -> None:
        """VS Code changes its variables and the body's class."""
        self.page.evaluate("([kind, values]) => theme(kind, values)", [kind, THEMES[kind]])

    def until(self, condition: Callable[[], bool]) -> None:
        """Carries messages to the page until something is true of it."""
        for _ in range(1200):
            while not self.news.empty():
                kind, data, buffers = self.news.get()
                self.page.evaluate("([k, d, b]) => deliver(k, d, b)", [kind, _plain(data), buffers])
            if condition():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(self.page.locator("#host").inner_text()[:1000])

    def close(self) -> None:
        broken = self.page.evaluate("broken")
        self.page.close()
        self.panel.close()
        assert broken == []
        assert self.asked == []
        assert self.complaints == []


def _plain(value: Any) -> Any:
    """JSON; bytes as ``{"bytes": base64}``, which the page makes a view of, as a widget manager does."""
    return json.loads(json.dumps(value, default=lambda each: {"bytes": base64.b64encode(bytes(each)).decode()}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that has ended."""
    rows = [{"prompt": f"How much is {i} plus 1?", "completion": f"{i + 1}."} for i in range(48)]
    folder = tmp_path_factory.mktemp("vscode")
    return nbtune.finetune(
        data="rows", rows={"rows": rows}, steps=12, batch_size=2, name="demo", runs_dir=folder
    ).wait()


@pytest.fixture
def webview(browser: Browser) -> Iterator[Callable[[Any, str], Webview]]:
    opened: list[Webview] = []

    def show(panel: Any, kind: str) -> Webview:
        opened.append(Webview(browser, panel, kind))
        return opened[-1]

    yield show
    for each in opened:
        each.close()


PANELS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "monitor": (lambda run: run.monitor(), ".js-plotly-plot .scatterlayer path"),
    "form": (lambda run: nbtune.form({"rows": [{"prompt": "a", "completion": "b"}] * 9}), ".nbt-step input"),
    "inspector": (lambda run: nbtune.inspect([{"prompt": "Who?", "completion": "Ahoy!"}] * 9), ".nbt-tok"),
    "chat": (lambda run: run.chat(), "textarea, input[type=text]"),
    "export": (lambda run: widgets.exporter(run), "button"),
    "compare": (lambda run: widgets.compare([run, run]), ".js-plotly-plot .scatterlayer path"),
}


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_draws_in_both_themes(webview: Any, run: Any, name: str) -> None:
    made, sign = PANELS[name]
    view = webview(made(run), "dark")
    view.until(lambda: view.page.locator(sign).count() > 0)
    root = view.page.locator("#host .nbt").first
    view.until(lambda: root.evaluate("(node) => node.classList.contains('nbt-dark')"))
    assert root.evaluate("(node) => getComputedStyle(node).backgroundColor") == "rgb(31, 31, 31)"
    ARTIFACTS.mkdir(exist_ok=True)
    view.page.screenshot(path=str(ARTIFACTS / f"vscode-{name}-dark.png"), full_page=True)
    view.page.evaluate((REPO / "js/node_modules/axe-core/axe.min.js").read_text(encoding="utf-8"))
    for kind in ("dark", "light"):
        view.theme(kind)
        view.until(lambda kind=kind: root.evaluate("(n) => n.classList.contains('nbt-dark')") == (kind == "dark"))
        found = view.page.evaluate("() => axe.run('#host')")["violations"]
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    view.page.screenshot(path=str(ARTIFACTS / f"vscode-{name}-light.png"), full_page=True)


def test_a_click_reaches_python_and_its_answer_the_page(webview: Any) -> None:
    view = webview(nbtune.form({"rows": [{"prompt": "a", "completion": "b"}] * 9}), "light")
    view.page.get_by_label("Data", exact=True).fill("rows")
    view.until(lambda: "data: rows" in view.page.locator("textarea").input_value())
    assert view.panel.spec.data[0].source == "rows"
    view.until(lambda: view.page.locator(".nbt-form[data-costs=known]").count() == 1)
    rate = view.page.locator("[data-key=learning_rate]")
    assert "The plan chose 0.01: 0.0005 × (2000 / 256)^0.781" in rate.text_content()
    view.page.screenshot(path=str(ARTIFACTS / "vscode-form-planned.png"), full_page=True)


def test_a_file_is_dropped_into_the_inspector(webview: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    view = webview(nbtune.inspect([{"prompt": "a", "completion": "b"}]), "light")
    data = {"name": "more.csv", "mimeType": "text/csv", "buffer": b"prompt,completion\nWho?,Ahoy!\nWhere?,Here.\n"}
    view.page.locator("input[type=file]").set_input_files(data)
    view.until(lambda: "Ahoy!" in view.page.locator("#host").inner_text())
    assert (tmp_path / "more.csv").is_file()
    view.page.screenshot(path=str(ARTIFACTS / "vscode-inspector-file.png"), full_page=True)


@pytest.mark.parametrize("path", sorted((REPO / "nbtune/widgets/static").glob("*.js")), ids=lambda path: path.name)
def test_modules_ask_nothing_of_the_page(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word in (
        "document.currentScript",
        "new Function",
        "eval(",
        "require(",
        "importScripts",
        "document.write",
    ):
        assert word not in text, f"{path.name} uses {word}"
