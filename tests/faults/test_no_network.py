"""Without any network: everything but the Hub works, nothing even asks, and what needs the Hub says so at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.every import every

REPO = Path(__file__).resolve().parents[2]

WORK = """
import json, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
began = time.perf_counter()
shell.run_line_magic("load_ext", "nbtune")
loaded = time.perf_counter() - began
shell.run_cell_magic("finetune", "--name demo --wait", "data: nbtune/json-answers\\nsteps: 3\\nsamples: [Hello]")
run = shell.user_ns["run"]
answer = run.generate("Hello", max_new_tokens=3)
files = [str(file.path) for file in [*run.export.gguf("q8_0"), run.export.merged(), run.export.adapter()]]
import nbtune.system_report
found = {finding.topic: finding.status for finding in nbtune.system_report.examine(offline=True)}
print("\\n" + json.dumps({"state": run.state, "files": files, "loaded": loaded, "found": found}))
"""

HUB = """
import json, time
import nbtune
from nbtune.errors import HubError
began = time.perf_counter()
try:
    nbtune.finetune(model="somebody/something", data="nbtune/json-answers", steps=1)
except HubError as error:
    print("\\n" + json.dumps({"cause": error.cause, "fix": error.fix, "seconds": time.perf_counter() - began}))
"""

# In a network namespace of its own not even the loopback is up, by which Jupyter speaks to its kernels.
LOOPBACK = """
import os, socket, struct, sys
if os.environ.pop("NBTUNE_TEST_APART", ""):
    import fcntl
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Where every process writes down whom it asks for."""
    return tmp_path / "asked"


def python(*words: str | Path, asked: Path, cwd: Path, timeout: float = 240) -> str:
    """What a Python says that has no network: refused at once, and in a network namespace of its own where one may."""
    apart = ["unshare", "--net"]
    may = shutil.which("unshare") and subprocess.run([*apart, "true"], capture_output=True).returncode == 0
    quiet = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")  # the user has set nothing
    environ = {name: value for name, value in os.environ.items() if name not in quiet}
    environ |= {"NBTUNE_TEST_OFFLINE": str(asked), "NBTUNE_TEST_APART": "1" if may else ""}
    command = [*(apart if may else []), sys.executable, "-c", LOOPBACK, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_and_its_exports_ask_nobody(tmp_path: Path, asked: Path) -> None:
    said = json.loads(python("-c", WORK, asked=asked, cwd=tmp_path).splitlines()[-1])
    assert said["state"] == "finished"
    assert not asked.exists(), asked.read_text()
    assert every(Path(file).exists() for file in said["files"])
    assert said["found"]["torch"] == "ok"


@pytest.mark.slow
def test_what_needs_the_hub_says_so_and_leaves_nothing(tmp_path: Path, asked: Path) -> None:
    said = json.loads(python("-c", HUB, asked=asked, cwd=tmp_path).splitlines()[-1])
    assert "could not be reached" in said["cause"]
    assert "nbtune/tiny" in said["fix"]
    assert said["seconds"] < 30
    assert asked.read_text().strip()  # so whoever asks is seen
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_asks_nobody(tmp_path: Path, asked: Path) -> None:
    said = python(REPO / "example_notebooks" / "run_demo.py", asked=asked, cwd=tmp_path, timeout=800)
    assert "Done in" in said
    assert "tuned" in said
    assert not asked.exists(), asked.read_text()


@pytest.mark.slow
def test_loading_the_extension_takes_as_long_as_with_a_network(tmp_path: Path, asked: Path) -> None:
    """The quicker of five each: a name server that does not answer would cost seconds."""
    code = (
        "import time; from IPython.core.interactiveshell import InteractiveShell; s = InteractiveShell.instance();"
        "t = time.perf_counter(); s.run_line_magic('load_ext', 'nbtune'); print(time.perf_counter() - t)"
    )

    def seconds(*, offline: bool) -> float:
        if offline:
            return float(python("-c", code, asked=asked, cwd=tmp_path))
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    without, with_it = (min(seconds(offline=offline) for _ in range(5)) for offline in (True, False))
    print(f"%load_ext: {without:.3f} s without a network, {with_it:.3f} s with one", file=sys.stderr)
    assert without < with_it + 0.2
    assert not asked.exists()
