"""The panels in a real marimo notebook: they draw, clicks reach Python, training goes on.

marimo is no requirement of the tests: `NBTUNE_TEST_MARIMO` names a Python that has both marimo and nbtune, unless this
one has marimo.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import ARTIFACTS, REPO, Browser
from playwright.sync_api import expect

PYTHON = os.environ.get("NBTUNE_TEST_MARIMO") or (sys.executable if importlib.util.find_spec("marimo") else "")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="marimo is not installed (NBTUNE_TEST_MARIMO)"),
]

NOTEBOOK = """
import marimo

app = marimo.App()


@app.cell
def _():
    import nbtune

    rows = [{{"prompt": f"How much is {{i}} plus 1?", "completion": f"{{i + 1}}."}} for i in range(60)]
    return nbtune, rows


@app.cell
def _(nbtune, rows):
    {first}
    return


if __name__ == "__main__":
    app.run()
"""
MONITOR = """run = nbtune.finetune(data="rows", rows={"rows": rows}, steps=100_000, batch_size=2, name="mo")
    run.monitor()"""


class Marimo:
    """A notebook that is served, and a page that looks at it."""

    def __init__(self, folder: Path, browser: Browser, first: str, *, dark: bool = False) -> None:
        self.folder = folder
        (folder / "nb.py").write_text(NOTEBOOK.format(first=first))
        theme = "dark" if dark else "light"
        (folder / "pyproject.toml").write_text(f'[tool.marimo.display]\ntheme = "{theme}"\n')
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        path = os.pathsep.join(str(p) for p in (REPO, REPO / "kernels"))
        env = {**os.environ, "HOME": str(folder), "NBTUNE_RUNS": str(folder / "runs"), "PYTHONPATH": path}
        env |= {"MARIMO_SKIP_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
        words = [PYTHON, "-m", "marimo", "run", "nb.py", "--headless", "--no-token", "-p", self.url.rpartition(":")[2]]
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(words, cwd=folder, env=env, stdout=self.log, stderr=self.log)
        self.complaints: list[str] = []
        self.page = browser.chromium.new_page(viewport={"width": 1000, "height": 1400})
        self.page.set_default_timeout(120_000)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self._wait()
        self.page.goto(self.url)

    def _wait(self) -> None:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).read()
                return
            except OSError:
                self.page.wait_for_timeout(200)
        raise RuntimeError((self.folder / "log").read_text())

    def runs(self) -> list[Any]:
        """The runs that it began."""
        import nbtune

        return nbtune.runs(self.folder / "runs")

    def picture(self, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=str(ARTIFACTS / f"{name}.png"), full_page=True)

    def close(self) -> None:
        for run in self.runs():
            run.stop()
        self.page.close()
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


@pytest.fixture
def marimo(tmp_path: Path, browser: Browser) -> Iterator[Any]:
    opened: list[Marimo] = []

    def open_(first: str, **options: Any) -> Marimo:
        opened.append(Marimo(tmp_path, browser, first, **options))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()
        assert [words for words in each.complaints if "Model not found" not in words] == []  # marimo's own words


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_monitor_draws_and_its_buttons_reach_the_run(marimo: Any, dark: bool) -> None:
    page = marimo(MONITOR, dark=dark)
    panel = page.page.locator(".nbt-monitor")
    panel.locator(".js-plotly-plot .scatterlayer path").first.wait_for()
    pause = panel.get_by_role("button", name="Pause")
    pause.click()
    expect(panel.get_by_role("button", name="Continue")).to_be_visible()
    (run,) = page.runs()
    assert run.state == "paused"
    held = run.step
    assert panel.evaluate("(node) => node.classList.contains('nbt-dark')") == dark
    page.picture(f"marimo-monitor-{'dark' if dark else 'light'}")
    panel.get_by_role("button", name="Continue").click()
    expect(pause).to_be_visible()
    page.page.wait_for_timeout(500)
    panel.get_by_role("button", name="Stop and save").click()
    expect(panel.locator("text=stopped").first).to_be_visible()
    assert run.state == "stopped"
    assert run.step > held


def test_a_form_starts_a_run_and_says_how_to_see_it(marimo: Any) -> None:
    page = marimo('nbtune.form({"rows": rows})')
    panel = page.page.locator(".nbt-form")
    panel.get_by_label("Data", exact=True).fill("rows")
    panel.locator("summary", has_text="YAML").click()
    yaml = panel.locator("textarea")
    expect(yaml).to_have_value("model: nbtune/tiny\ndata: rows\n")
    yaml.click()
    yaml.press("Control+End")
    yaml.press_sequentially("steps: 12", delay=20)
    page.page.locator(".nbt-form[data-costs=known]").wait_for()
    expect(yaml).to_have_value("model: nbtune/tiny\ndata: rows\nsteps: 12")
    panel.get_by_label("Name", exact=True).fill("clicked")
    panel.get_by_role("button", name="Start").click()
    expect(panel).to_contain_text('nbtune.attach("clicked").monitor()')  # marimo shows a widget only as a cell's value
    page.picture("marimo-form")
    (run,) = page.runs()
    assert run.wait(120).state == "finished"
    assert run.spec.steps == 12


def test_the_inspector_shows_rows(marimo: Any) -> None:
    page = marimo("nbtune.inspect(rows)", dark=True)
    panel = page.page.locator(".nbt-inspector")
    panel.get_by_role("button", name="Next").click()
    expect(panel).to_contain_text("How much is 1 plus 1?")
    page.picture("marimo-inspector-dark")
