"""ipykernel 6 handles one message at a time: a waiting cell hears the buttons itself, and loses no other cell."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.notebook.kernel import Kernel
from tests.notebook.test_waiting import BODY, COLAB, SETUP, WIDGET

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


def _last_word(kernel: Kernel) -> float:
    """When the run said its last event."""
    return float(kernel.run("print('said at', run.events()[-1].time)").text.rpartition("said at ")[2].split()[0])


def test_a_click_and_the_next_cell_while_the_cell_waits(kernel: Kernel) -> None:
    assert kernel.value("__import__('ipykernel').version_info[0]") == "6"
    waiting = kernel.send(f"%%finetune --name old\n{BODY}steps: 100000\n")
    shown = kernel.until(lambda m: m["msg_type"] == "display_data" and WIDGET in m["content"]["data"])
    kernel.until(lambda m: m["msg_type"] == "update_display_data" and "running" in m["content"]["data"]["text/plain"])
    next_cell = kernel.send("print('the next cell', run.state)")
    clicked = time.time()
    kernel.click(shown["content"]["data"][WIDGET]["model_id"], "stop")
    ended = kernel.finish(waiting, timeout=240)
    assert ended.status == "ok", ended.text
    assert "Run old: stopped" in ended.text
    assert "the next cell stopped" in kernel.finish(next_cell, timeout=240).text
    assert _last_word(kernel) - clicked <= 2.0


def test_an_interrupt_releases_the_cell(kernel: Kernel) -> None:
    waiting = kernel.send("%nbtune resume old")
    kernel.until(lambda m: m["msg_type"] == "update_display_data" and "running" in m["content"]["data"]["text/plain"])
    kernel.interrupt()
    released = kernel.finish(waiting, timeout=240)
    assert released.status == "ok", released.text
    assert kernel.value("run.state") == "'running'"
    kernel.interrupt()
    assert "'stopped'" in kernel.value("run.wait().state")  # the report of the end comes along


def test_in_colab_points_arrive_and_stop_works_while_the_cell_waits(kernel: Kernel) -> None:
    kernel.run(COLAB)
    waiting = kernel.send(f"%%finetune --name colab\n{BODY}steps: 1000000\n")
    shown = kernel.until(lambda m: m["msg_type"] == "display_data" and WIDGET in m["content"]["data"])
    panel = shown["content"]["data"][WIDGET]["model_id"]
    # points: messages of the panel, with their numbers in a buffer
    for _ in range(3):
        kernel.until(lambda m: m["msg_type"] == "comm_msg" and m["content"]["comm_id"] == panel and m["buffers"])
    clicked = time.time()
    kernel.click(panel, "stop")
    ended = kernel.finish(waiting, timeout=240)
    assert ended.status == "ok", ended.text
    assert "Run colab: stopped" in ended.text
    assert _last_word(kernel) - clicked <= 2.0
    # the first interrupt lets the cell go, the second stops and saves
    waiting = kernel.send("%nbtune resume colab")
    kernel.until(lambda m: m["msg_type"] == "update_display_data" and "running" in m["content"]["data"]["text/plain"])
    kernel.interrupt()
    released = kernel.finish(waiting, timeout=240)
    assert "goes on in the background" in released.text
    assert kernel.value("run.state") == "'running'"
    seen = int(kernel.value("run.step"))
    kernel.run(f"import time\nwhile run.step < {seen + 5}: time.sleep(0.05)")
    kernel.interrupt()
    assert "'stopped'" in kernel.value("run.wait().state")  # the report of the end comes along
    assert kernel.value("(run.folder / 'adapter').is_dir()") == "True"
