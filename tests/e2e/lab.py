"""A real JupyterLab on a free port and a real, headless Chromium that looks at it.

    with Lab(folder) as lab, Browser() as browser:
        notebook = browser.open(lab, ["print(1)"])
        notebook.run(0)

Home, settings, runs and kernels of the Lab lie in its folder: nothing of the machine's user is read or written.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import nbformat

REPO = Path(__file__).resolve().parents[2]
ARTIFACTS = REPO / "artifacts"
TOKEN = "nbtune-test"
PATIENCE = 300  # seconds that a server may take to start on a machine that has other work
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")


def find_chromium() -> str:
    """The browser's path.

    Raises:
        RuntimeError: there is none; the message says how to get one.
    """
    named = os.environ.get("NBTUNE_TEST_CHROMIUM")
    for name in filter(None, (named, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")):
        if path := shutil.which(name):
            return path
    raise RuntimeError("browser tests need Chromium: `apt-get install chromium`, or name one in NBTUNE_TEST_CHROMIUM")


class Lab:
    """A running Jupyter server.

    Args:
        folder: what the Lab sees and where it keeps everything.
        app: `lab`, or `notebook` for Notebook 7.
        python: the interpreter whose Jupyter is started.
        kernel: the interpreter of the notebooks' kernels, where it is another one.
    """

    def __init__(self, folder: Path, app: str = "lab", python: str = sys.executable, kernel: str = "") -> None:
        self.folder, self.app, self.python, self.kernel = folder, app, python, kernel
        self.root = folder / "work"
        self.root.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Lab:
        self._settings()
        words = [self.python, "-m", "jupyter", self.app, "--no-browser", "--allow-root", f"--port={self.port}"]
        words += [
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={TOKEN}",
            f"--ServerApp.root_dir={self.root}",
        ]
        words += ["--expose-app-in-browser", "--LabApp.news_url=", "--ServerApp.terminals_enabled=False"]
        self.log = (self.folder / "server.log").open("w")
        self.process = subprocess.Popen(
            words, cwd=self.root, env=self._env(), stdout=self.log, stderr=self.log, start_new_session=True
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.log.close()

    def _env(self) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_", "IPYTHON", "XDG_"))}
        path = os.pathsep.join(str(p) for p in (REPO, REPO / "kernels", REPO / "tests" / "widgets"))
        return env | {
            "HOME": str(home),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "IPYTHONDIR": str(home / "ipython"),
            "NBTUNE_RUNS": str(self.root / "runs"),
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }

    def _settings(self) -> None:
        if self.kernel:
            words = [self.kernel, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            spec = self.folder / "home" / "data" / "kernels" / "other" / "kernel.json"
            spec.parent.mkdir(parents=True)
            spec.write_text(json.dumps({"argv": words, "display_name": "Other", "language": "python"}))
        folder = self.folder / "home" / "config" / "lab" / "user-settings" / "@jupyterlab"
        for plugin, values in {
            "apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
            "docmanager-extension/plugin.jupyterlab-settings": {"autosave": False},
        }.items():
            path = folder / plugin
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.api("GET", "status")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise RuntimeError(f"JupyterLab did not start:\n{(self.folder / 'server.log').read_text()[-3000:]}")

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the server's REST interface."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/{path}", data=data, method=method)
        request.add_header("Authorization", f"token {TOKEN}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def write(self, cells: list[str], name: str = "") -> str:
        """A notebook of code cells in the Lab's folder; returns its name."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        kernel = ("other", "Other") if self.kernel else ("python3", "Python 3")
        notebook.metadata["kernelspec"] = {"name": kernel[0], "display_name": kernel[1], "language": "python"}
        name = name or f"{uuid.uuid4().hex[:8]}.ipynb"
        nbformat.write(notebook, self.root / name)
        return name

    def stop_kernels(self) -> None:
        """Ends all kernels, so that the next test has the machine for itself."""
        for session in self.api("GET", "sessions"):
            self.api("DELETE", f"sessions/{session['id']}")


class Browser:
    """Headless Chromium."""

    def __enter__(self) -> Browser:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self.chromium = self._playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        return self

    def __exit__(self, *_: object) -> None:
        self.chromium.close()
        self._playwright.stop()

    def open(
        self, lab: Lab, cells: list[str] | str, *, dark: bool = False, width: int = 1000, height: int = 1100
    ) -> Page:
        """Opens a notebook (its cells, or the name of one that is there) and waits for its kernel."""
        name = cells if isinstance(cells, str) else lab.write(cells)
        page = self.chromium.new_page(viewport={"width": width, "height": height})
        notebook = Page(lab, page, name)
        notebook.load(dark=dark)
        return notebook


class Page:
    """A notebook in a page of the browser."""

    def __init__(self, lab: Lab, page: Any, name: str) -> None:
        self.lab, self.page, self.name = lab, page, name
        page.set_default_timeout(float(os.environ.get("NBTUNE_TEST_PATIENCE", 120_000)))  # a shared machine may be slow
        self.complaints: list[str] = []
        self.bytes = 0
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("websocket", self._count)

    def _count(self, socket_: Any) -> None:
        def add(frame: Any) -> None:
            self.bytes += len(frame)

        socket_.on("framereceived", add)

    def load(self, *, dark: bool = False) -> None:
        """(Re)loads the page and waits until it has a kernel."""
        path = "notebooks" if self.lab.app == "notebook" else "lab/tree"
        self.page.goto(f"{self.lab.url}/{path}/{self.name}?token={TOKEN}&reset")
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel")
        self.page.evaluate("() => window.jupyterapp.shell.collapseLeft?.()")
        self.dark(dark)  # the Lab remembers the theme of the page before

    def dark(self, on: bool = True) -> None:
        """JupyterLab's dark theme, or its light one."""
        theme = "JupyterLab Dark" if on else "JupyterLab Light"
        self.command("apputils:change-theme", {"theme": theme})
        self.page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{str(not on).lower()}'")
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def command(self, name: str, args: Any = None) -> None:
        """Executes a command of the Lab, as its menus do."""
        self.page.evaluate("([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, args or {}])

    def run(self, index: int, *, wait: bool = True) -> None:
        """Runs a cell; `wait` until it is done."""
        self.page.evaluate(
            """async ([index, wait]) => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                notebook.activeCellIndex = index;
                notebook.deselectAll();
                const done = window.jupyterapp.commands.execute("notebook:run-cell");
                if (wait) await done;
            }""",
            [index, wait],
        )

    def run_code(self, code: str) -> None:
        """Writes `code` into a new cell at the end and runs it."""
        self.page.evaluate(
            """async (code) => {
                const { content } = window.jupyterapp.shell.currentWidget;
                content.activeCellIndex = content.widgets.length - 1;
                await window.jupyterapp.commands.execute("notebook:insert-cell-below");
                content.activeCell.model.sharedModel.setSource(code);
                await window.jupyterapp.commands.execute("notebook:run-cell");
            }""",
            code,
        )

    def output(self, index: int) -> str:
        """The text of a cell's outputs, when there is some."""
        text = self.cell(index).locator(".jp-OutputArea-output").first
        text.wait_for()
        return text.inner_text()

    def cell(self, index: int) -> Any:
        """A cell, as a locator."""
        return self.page.locator(".jp-CodeCell").nth(index)

    def save(self) -> None:
        """Saves the notebook."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")

    def complain(self, selector: str) -> list[str]:
        """What axe-core finds serious or critical in a part of the page: rule, and the place."""
        self.page.evaluate((REPO / "js" / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
        found = self.page.evaluate("(selector) => axe.run(selector)", selector)
        grave = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
        return [f"{each['id']}: {node['html'][:200]}: {node['any'][:1]}" for each in grave for node in each["nodes"]]

    def picture(self, name: str, of: Any = None) -> Path:
        """A screenshot in artifacts/, to be looked at."""
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        before = self.page.viewport_size
        if of is not None and (tall := int(of.bounding_box()["height"]) + 400) > before["height"]:
            self.page.set_viewport_size({"width": before["width"], "height": tall})  # what scrolls is cut otherwise
        (of or self.page).screenshot(path=str(path))
        self.page.set_viewport_size(before)
        return path

    def looks(self, name: str, selector: str) -> list[str]:
        """Pictures of a panel in light, in dark, and 320 pixels wide; what axe-core and a ruler find wrong in each."""
        panel, before, found = self.page.locator(selector).first, self.page.viewport_size, []
        for look in ("light", "dark", "320"):
            self.dark(look == "dark")
            if look == "320":
                self._narrow(panel)
            panel.evaluate(_SETTLED)
            self.picture(f"{name}-{look}", panel)
            found += [f"{look}: {each}" for each in [*self.complain(selector), *panel.evaluate(_STICKING_OUT)]]
        self.page.set_viewport_size(before)
        return found

    def _narrow(self, panel: Any) -> None:
        """Makes a panel 320 pixels wide; what is around it changes its width, too."""
        for _ in range(5):
            size, width = self.page.viewport_size, panel.evaluate(_SETTLED)
            if width == 320:
                return
            self.page.set_viewport_size({"width": size["width"] + 320 - int(width), "height": size["height"]})
        raise AssertionError(f"the panel is {width} wide")

    def close(self) -> None:
        self.page.close()


# Two frames in a row without a change of size or colour.
_SETTLED = """async (panel) => {
    const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const size = () => JSON.stringify([panel.getBoundingClientRect(), panel.className, getComputedStyle(panel).color]);
    for (let before = ""; before !== size(); await frame()) { before = size(); await frame(); }
    return Math.round(panel.getBoundingClientRect().width);
}"""
_STICKING_OUT = """(panel) => {
    const edge = panel.getBoundingClientRect().right + 1;
    const out = [...panel.querySelectorAll("*")].filter((node) => node.getBoundingClientRect().right > edge
        && node.getBoundingClientRect().width && !node.closest(".nbt-scroll, .nbt-page, svg, .nbt-sr, datalist"));
    return out.map((node) => `sticks out: ${node.tagName} ${node.className}`).slice(0, 5);
}"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
