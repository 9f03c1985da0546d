"""A real jupyter_server, spoken to by its REST interface; cells go straight to the kernels that it has started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

from tests.notebook.kernel import PAGE, ROOT

TOKEN = "nbtune-test"


class Server:
    """`with Server(folder, "--Some.setting=1") as server: server.start("1 + 1")`."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.settings = settings
        self.folder, self.runs, self.runtime = folder, folder / "runs", folder / "runtime"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self) -> Server:
        words = [sys.executable, "-m", "jupyter", "server", "--no-browser", "--allow-root", f"--port={self.port}"]
        words += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={self.folder}"]
        words += self.settings
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
        client.wait_for_ready(timeout=240)
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = client.session.msg("execute_request", content, metadata=PAGE)
        client.shell_channel.send(message)
        while True:
            answer = client.get_shell_msg(timeout=240)
            if answer["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                break
        client.stop_channels()
        assert answer["content"]["status"] == "ok", answer["content"]
        return ident
