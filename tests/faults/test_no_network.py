"""Without any network: everything but the Hub works, nothing even asks, and what needs the Hub says so at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Whoever opens a connection, or asks for an address, is written down and refused.
DENY = """
import json, sys, time
asked = []
def deny(event, args):
    if event == "socket.connect" and not isinstance(args[1], (str, bytes)):  # those are files of this machine
        host = args[1][0]
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host not in ("127.0.0.1", "::1", "localhost", "None", ""):
        asked.append(host)
        raise OSError(101, "Network is unreachable")
sys.addaudithook(deny)
"""

WORK = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
began = time.perf_counter()
shell.run_line_magic("load_ext", "nbtune")
loaded = time.perf_counter() - began
shell.run_cell_magic("finetune", "--name demo --wait", "data: nbtune/json-answers\\nsteps: 3\\nsamples: [Hello]")
run = shell.user_ns["run"]
answer = run.generate("Hello", max_new_tokens=3)
files = [str(file.path) for file in [*run.export.gguf("q8_0"), run.export.merged(), run.export.adapter()]]
import nbtune.doctor
found = {finding.topic: finding.status for finding in nbtune.doctor.examine(offline=True)}
print("\\n" + json.dumps({"state": run.state, "files": files, "asked": asked, "loaded": loaded, "found": found}))
"""

HUB = """
import nbtune
from nbtune.errors import HubError
began = time.perf_counter()
try:
    nbtune.finetune(model="somebody/something", data="nbtune/json-answers", steps=1)
except HubError as error:
    print("\\n" + json.dumps({"cause": error.cause, "fix": error.fix, "seconds": time.perf_counter() - began}))
"""


def _python(code: str, tmp_path: Path, **more: str) -> dict[str, object]:
    """What a Python says that has no network; in a network namespace of its own where that is allowed."""
    apart = ["unshare", "--net"]
    may = shutil.which("unshare") and subprocess.run([*apart, "true"], capture_output=True).returncode == 0
    quiet = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")  # the user has set nothing
    environ = {**{name: value for name, value in os.environ.items() if name not in quiet}, **more}
    command = [*(apart if may else []), sys.executable, "-c", DENY + code]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_a_run_and_its_exports_ask_nobody(tmp_path):
    said = _python(WORK, tmp_path)
    assert said["state"] == "finished"
    assert said["asked"] == []
    assert all(Path(file).exists() for file in said["files"])
    assert said["found"]["torch"] == "ok"


@pytest.mark.slow
def test_what_needs_the_hub_says_so_and_leaves_nothing(tmp_path):
    said = _python(HUB, tmp_path)
    assert "could not be reached" in said["cause"]
    assert "nbtune/tiny" in said["fix"]
    assert said["seconds"] < 30
    assert not (tmp_path / "runs").exists()
