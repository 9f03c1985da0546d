"""A real jupyter_server that ends idle kernels, and nobody's page: a run comes to its end, and then the kernel goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbtune
from tests.notebook.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
IDLE, INTERVAL = 15, 2
CELL = """
%load_ext nbtune
%config NbtuneMagics.heartbeat = {heartbeat}
import nbtune
rows = [{{"prompt": f"How much is {{i}} plus 1?", "completion": f"{{i + 1}}."}} for i in range(16)]
{start}
"""
IN_PYTHON = 'run = nbtune.finetune(data="rows", steps={steps}, batch_size=2, name="{name}", rows=globals())'
IN_A_CELL = 'get_ipython().run_cell_magic("finetune", "--name {name}", "data: rows\\nsteps: {steps}\\nbatch_size: 2")'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    settings = (f"cull_idle_timeout={IDLE}", f"cull_interval={INTERVAL}", "cull_connected=True")
    with Server(tmp_path, *(f"--MappingKernelManager.{setting}" for setting in settings)) as made:
        yield made


def _gone(server: Server, ident: str, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ident not in server.kernels():
            return True
        time.sleep(0.5)
    return False


def test_a_run_outlives_the_idle_timer_and_its_kernel_is_culled_after_it(server: Server) -> None:
    cells = {"silent": (IN_PYTHON, 10**6, 0), "cell": (IN_A_CELL, 10**6, 5), "python": (IN_PYTHON, 1000, 5)}
    kernels, runs = {}, {}
    for name, (start, steps, heartbeat) in cells.items():
        kernels[name] = server.start(CELL.format(start=start.format(name=name, steps=steps), heartbeat=heartbeat))
        runs[name] = nbtune.attach(name, runs_dir=server.runs)
    runs["python"].pause()  # nothing is heard of it for a minute
    runs["silent"].pause()
    begun = time.monotonic()
    assert _gone(server, kernels["silent"], 4 * IDLE), "without a sign of life the idle timer would not even be on"
    while time.monotonic() - begun < 4 * IDLE:
        assert {kernels["python"], kernels["cell"]} <= server.kernels(), runs
        time.sleep(1)
    assert runs["cell"].state == "running"
    assert runs["python"].state == "paused"
    runs["python"].unpause()
    assert runs["python"].wait().state == "finished"
    assert len(runs["python"].history) == 1000
    runs["cell"].stop(wait=True)
    for name in ("python", "cell"):
        assert runs[name].events()[-1].time - runs[name].events()[0].time > 3.5 * IDLE
        assert _gone(server, kernels[name], 4 * IDLE), f"the kernel of {name} goes on beating"
    # a kernel that ends in order takes its run along, saved
    assert runs["silent"].state == "stopped"
    assert runs["silent"].resume().state in ("queued", "preparing", "running")
    runs["silent"].stop(wait=True)
