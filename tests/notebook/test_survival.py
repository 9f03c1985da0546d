"""A detached run needs neither kernel nor server: both are killed, another kernel goes on with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import nbtune
from nbtune.events import State, Step
from tests.notebook.kernel import Kernel
from tests.notebook.server import Server
from tests.notebook.test_waiting import WIDGET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CELL = """
%load_ext nbtune
import os, pandas, nbtune
frame = pandas.DataFrame([{"prompt": f"How much is {i} plus 1?", "completion": f"{i + 1}."} for i in range(16)])
short = nbtune.finetune(data="frame", steps=4, name="short", rows=globals()).wait()
get_ipython().run_cell_magic("finetune", "--name far --detach", "data: frame\\nsteps: 1000000\\nbatch_size: 2")
with open("pid", "w") as file:
    file.write(str(os.getpid()))
"""


def _until_step(run: nbtune.Run, step: int) -> None:
    while run.step < step:
        assert run.state in ("queued", "preparing", "running")
        time.sleep(0.05)


def test_kernel_and_server_are_killed_and_the_run_goes_on(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.start(CELL)
        kernel = psutil.Process(int((tmp_path / "pid").read_text()))
        far = nbtune.attach("far", runs_dir=server.runs)
        _until_step(far, 3)
        server.process.send_signal(signal.SIGKILL)
        kernel.send_signal(signal.SIGKILL)
        server.process.wait()
        psutil.wait_procs([kernel], timeout=240)
    before = far.step
    _until_step(far, before + 5)
    assert far.state == "running"
    with Kernel(tmp_path) as again:
        assert again.run("%load_ext nbtune").status == "ok"
        shown = again.run("%nbtune attach far")
        assert shown.status == "ok", shown.text
        (panel,) = shown.outputs(WIDGET)
        again.run("seen = list(run.history.index)")
        assert again.value(f"seen == list(range(1, len(seen) + 1)) and len(seen) >= {before + 5}") == "True"
        assert int(again.value("len(run.figure().data[0].x)")) >= before + 5
        clicked = time.time()
        again.click(panel["data"][WIDGET]["model_id"], "stop")
        assert far.wait().state == "stopped"
        answers = [event.time for event in far.events() if isinstance(event, State) and event.state == "stopping"]
        assert answers[-1] - clicked <= 2.0
        assert far.events()[-1].time - clicked <= 2.0
        # this kernel has never seen the frame
        saved = far.step
        resumed = again.run("%nbtune resume far")
        assert resumed.status == "ok", resumed.text
        _until_step(far, saved + 3)
        assert again.run("run.stop(wait=True)").status == "ok"
        assert far.state == "stopped"
    steps = [event.step for event in far.events() if isinstance(event, Step)]
    assert steps == list(range(1, far.step + 1))


def test_the_script_in_the_folder_trains_it_again(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.start(CELL.partition("get_ipython")[0] + "import pathlib; pathlib.Path('pid').write_text('')")
    short = nbtune.attach("short", runs_dir=tmp_path / "runs")
    environ = {name: value for name, value in os.environ.items() if name != "NBTUNE_RUNS"}
    command = [sys.executable, str(short.folder / "train.py")]
    done = subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    again = nbtune.attach(Path(done.stdout.strip()))
    assert again.folder != short.folder
    assert again.history["loss"].to_dict() == short.history["loss"].to_dict()
