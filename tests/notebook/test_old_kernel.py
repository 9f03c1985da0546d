"""ipykernel 6 handles one message at a time: a waiting cell hears the buttons itself, and loses no other cell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.notebook.kernel import Kernel
from tests.notebook.test_waiting import BODY, SETUP, WIDGET

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["ipykernel<7", "ipykernel<6.30"])
def kernel(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, outside_environ: dict[str, str]
) -> Iterator[Kernel]:
    packages = tmp_path_factory.mktemp("packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), request.param]
    subprocess.run(install, check=True, env=outside_environ)
    with Kernel(tmp_path_factory.mktemp("kernel"), first=packages) as made:
        assert made.run(SETUP).status == "ok"
        yield made


def test_a_click_and_the_next_cell_while_the_cell_waits(kernel: Kernel) -> None:
    assert kernel.value("__import__('ipykernel').version_info[0]") == "6"
    waiting = kernel.send(f"%%finetune --name old\n{BODY}steps: 100000\n")
    shown = kernel.until(lambda m: m["msg_type"] == "display_data" and WIDGET in m["content"]["data"])
    kernel.until(lambda m: m["msg_type"] == "update_display_data" and "running" in m["content"]["data"]["text/plain"])
    next_cell = kernel.send("print('the next cell', run.state)")
    kernel.click(shown["content"]["data"][WIDGET]["model_id"], "stop")
    ended = kernel.finish(waiting, timeout=20)
    assert ended.status == "ok", ended.text
    assert "Run old: stopped" in ended.text
    assert "the next cell stopped" in kernel.finish(next_cell, timeout=20).text


def test_an_interrupt_releases_the_cell(kernel: Kernel) -> None:
    waiting = kernel.send("%nbtune resume old")
    kernel.until(lambda m: m["msg_type"] == "update_display_data" and "running" in m["content"]["data"]["text/plain"])
    kernel.interrupt()
    released = kernel.finish(waiting, timeout=20)
    assert released.status == "ok", released.text
    assert kernel.value("run.state") == "'running'"
    kernel.interrupt()
    assert kernel.value("run.wait().state") == "'stopped'"
