"""A real jupyter_server that ends idle kernels, and nobody's page: a run comes to its end, and then the kernel goes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

import nbtune
from tests.notebook.kernel import PAGE, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
IDLE, INTERVAL, TOKEN = 15, 2, "nbtune-test"
CELL = """
%load_ext nbtune
%config NbtuneMagics.heartbeat = {heartbeat}
import nbtune
rows = [{{"prompt": f"How much is {{i}} plus 1?", "completion": f"{{i + 1}}."}} for i in range(16)]
{start}
"""
IN_PYTHON = 'run = nbtune.finetune(data="rows", steps={steps}, batch_size=2, name="{name}", rows=globals())'
IN_A_CELL = 'get_ipython().run_cell_magic("finetune", "--name {name}", "data: rows\\nsteps: {steps}\\nbatch_size: 2")'


class Server:
    """Jupyter's server, spoken to by its REST interface; cells go straight to the kernel."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.runtime = folder, folder / "runs", folder / "runtime"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self) -> Server:
        words = [sys.executable, "-m", "jupyter", "server", "--no-browser", "--allow-root", f"--port={self.port}"]
        words += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={self.folder}"]
        words += [f"--MappingKernelManager.cull_idle_timeout={IDLE}"]
        words += [f"--MappingKernelManager.cull_interval={INTERVAL}", "--MappingKernelManager.cull_connected=True"]
        environ = {
            **os.environ,
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "NBTUNE_RUNS": str(self.runs),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
        }
        self.log = (self.folder / "server.log").open("w")
        self.process = subprocess.Popen(words, cwd=self.folder, env=environ, stdout=self.log, stderr=self.log)
        for _ in range(600):
            try:
                self.api("GET", "status")
                return self
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()

    def api(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", data=data, method=method)
        request.add_header("Authorization", f"token {TOKEN}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def kernels(self) -> set[str]:
        return {kernel["id"] for kernel in self.api("GET", "kernels")}

    def start(self, code: str) -> str:
        """A new kernel that has run a cell and has no client any more."""
        ident = str(self.api("POST", "kernels", {"name": "python3"})["id"])
        client = BlockingKernelClient(connection_file=str(self.runtime / f"kernel-{ident}.json"))
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = client.session.msg("execute_request", content, metadata=PAGE)
        client.shell_channel.send(message)
        while True:
            answer = client.get_shell_msg(timeout=60)
            if answer["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                break
        client.stop_channels()
        assert answer["content"]["status"] == "ok", answer["content"]
        return ident


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as made:
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
