"""A JupyterLab whose environment has no widgets, and a kernel that has: within 5 s text and a picture that move."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Browser, Lab
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELL = """import nbtune
rows = [{"prompt": f"Who are you, {i}?", "completion": "Ahoy! I am Captain Tune."} for i in range(64)]
run = nbtune.finetune(data="rows", rows=globals(), steps=400, name="apart", batch_size=2)
run.monitor()"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with JupyterLab alone."""
    place = tmp_path_factory.mktemp("other") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([str(place / "bin" / "pip"), "install", "-q", "jupyterlab", "notebook"], check=True)
    return place / "bin" / "python"


@pytest.fixture(scope="module", params=["neither", "ipywidgets alone"])
def apart(request, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if request.param != "neither":  # then Lab has a widget manager, which cannot load anywidget's models
        subprocess.run([str(other.parent / "pip"), "install", "-q", "ipywidgets"], check=True)
    with Lab(tmp_path_factory.mktemp("lab"), python=str(other), kernel=sys.executable) as lab:
        lab.missing = "anywidget ipywidgets" if request.param == "neither" else "anywidget"  # type: ignore[attr-defined]
        yield lab


def test_text_and_picture_take_the_panels_place(apart: Lab, browser: Browser):
    page = browser.open(apart, [CELL, "run.wait(); print(run.state)"])
    page.page.set_default_timeout(40_000)
    shown = page.cell(0).locator(".jp-OutputArea-output")
    page.run(0)
    began = time.monotonic()
    text = shown.locator("pre", has_text="-m pip install")
    text.wait_for()
    seconds = time.monotonic() - began
    expect(text).to_contain_text(f"{Path(apart.python).parent}/python")
    expect(text).to_contain_text(f"-m pip install {apart.missing}")
    expect(text).to_contain_text("Run apart: running")
    expect(shown.locator("img")).to_be_visible()
    before = text.inner_text()
    page.page.wait_for_function(
        "(before) => ![...document.querySelectorAll('pre')].some((node) => node.innerText === before)", arg=before
    )
    page.picture("no-widgets" if "ipywidgets" in apart.missing else "no-anywidget")
    page.run(1)
    assert page.output(1).strip() == "finished"
    expect(text).to_contain_text("Run apart: finished, step 400 of 400")
    page.close()
    apart.stop_kernels()
    assert seconds < 5 + 2  # seconds: a slack for a machine that is shared
