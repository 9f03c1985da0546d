"""What listens during everything that nbtune starts on one host, as `ss -ltn` would show it: nothing beyond the
loopback interface, and nothing after it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nbtune import events
from nbtune.export.llama_runner import find_llama
from tests.engine.conftest import ROWS, SPEC
from tests.engine.lives import MARK, family
from tests.support.fake_hub import FakeHub, client_environment

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux says who listens")
LOOPBACK = {"127.0.0.1", "::1"}
BEGIN = f"""
import json, os, subprocess, sys
import nbtune
SPEC, ROWS = {SPEC!r}, {ROWS!r}
MANY = [{{"prompt": f"What is {{a}} plus 1?", "completion": f"{{a + 1}}."}} for a in range(6000)]
def train(rows=ROWS, detach=False, **fields):
    run = nbtune.finetune({{**SPEC, "device": "cpu", "steps": 3, **fields}}, name="demo", rows={{"rows": rows}},
                          detach=detach)
    run.wait()
    return run
def tell(*words):
    subprocess.run([sys.executable, "-m", "nbtune", *words], check=True, stdin=subprocess.DEVNULL)
"""
TRAINED = {
    "thread": "train()",
    "detached": "train(detach=True)",
    "two": "train(gpus=2)",
    "two detached": "train(gpus=2, detach=True)",
    "parted": "train(gpus=2, weights='sharded', adapter='full')",
    "prepared by several": "train(rows=MANY, eval={'split': 0.1})",
    "a command": "open('demo.yaml', 'w').write('data: nbtune/persona\\nsteps: 2\\ndevice: cpu\\n')\n"
    "tell('plan', 'demo.yaml')\ntell('train', 'demo.yaml', '--name', 'demo')",
    "a rate": "nbtune.lr_find({**SPEC, 'device': 'cpu'}, rows={'rows': ROWS})",
    "watched": """
from pathlib import Path
from tests.engine.test_watching import make
trainer = make("plain", Path("out"))
nbtune.watch(trainer, "demo")
trainer.train()
""",
}
JOB = """
run = nbtune.submit({{**SPEC, "device": "cpu", "steps": 3}}, name="demo", rows={{"rows": ROWS}}, slurm="gpus={count}",
                    send=False)
os.makedirs("bin")
open("bin/srun", "w").write('#!/bin/sh\\nshift\\nexec "$@"\\n')  # its one option; then what a node does
os.chmod("bin/srun", 0o755)
environment = {{**os.environ, "PATH": "bin:" + os.environ["PATH"], "SLURM_JOB_ID": "7"}}
subprocess.run(["bash", str(run.folder / "job.sbatch")], env=environment, check=True)
assert run.state == "finished", run.events()[-1]
assert run.plan.gpus == {count}
"""
AFTERWARDS = {
    "chat": "print(train().generate('What is 1 plus 2?', max_new_tokens=3))\ntell('chat', 'demo')",
    "an export": "train().export.gguf('q8_0')",
    "a push": "train().push_to_hub('ada/demo')",
    "losses": "train()\ntell('losses', 'demo')",
    "a page": "train()\ntell('export', 'demo', '--html')\ntell('runs')",
}
ALL = {**TRAINED, "a job": JOB.format(count=1), "a job of two": JOB.format(count=2), **AFTERWARDS}
SEVERAL = {"two", "two detached", "parted", "a job of two"}  # they speak over the loopback


def listening() -> dict[str, str]:
    """Who waits for connections on this machine: socket → address."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, socket = line.split()[:10]
            if state == "0A":  # LISTEN
                words = bytes.fromhex(local.partition(":")[0])
                address = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                there = ipaddress.ip_address(address)
                found[socket] = str(getattr(there, "ipv4_mapped", None) or there)
    return found


def holds(process: psutil.Process, socket: str) -> bool:
    """Whether a socket is a process's."""
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(file) == f"socket:[{socket}]":
                    return True
    return False


@contextlib.contextmanager
def heard(pid: int, mark: str) -> Iterator[set[str]]:
    """The addresses at which somebody of a family listens, at any time meanwhile."""
    found: set[str] = set()
    over, others = threading.Event(), set(listening())

    def look() -> None:
        while not over.wait(0.02):
            for socket, address in listening().items():
                if socket not in others:
                    others.add(socket)  # looked at
                    found.update({address} if any(holds(one, socket) for one in family(pid, mark)) else ())

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield found
    finally:
        over.set()
        looker.join()


def carried_out(kind: str, folder: Path, **environment: str) -> set[str]:
    """Carry out one kind in a process of its own; where somebody listened."""
    mark = f"{os.getpid()} {kind}"
    dropped = ("NBTUNE_RUNS", *(("HF_", "TRANSFORMERS_OFF") if environment else ()))  # the Hub is one of our own
    ours = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + ALL[kind]], env={**ours, **environment, MARK: mark}, cwd=folder,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        with heard(process.pid, mark) as found:
            said = process.communicate()[0]
    assert process.returncode == 0, said[-3000:]
    left = family(process.pid, mark)
    psutil.wait_procs(left, timeout=240)
    assert not (still := family(process.pid, mark)), [one.cmdline() for one in still]
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ALL)
def test_what_listens_does_so_on_the_loopback_only_and_ends_with_the_work(kind: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        environment: dict[str, str] = {}
        if kind == "a push":
            environment = client_environment(stack.enter_context(FakeHub()), tmp_path / "home")
        found = carried_out(kind, tmp_path, **environment)
    assert found <= LOOPBACK
    assert bool(found) == (kind in SEVERAL)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_ray_that_is_started_for_a_run_listens_on_the_loopback_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setitem(ALL, "a ray", "train(cluster={'engine': 'ray', 'workers': 2, 'address': 'local'})")
    assert carried_out("a ray", tmp_path) <= LOOPBACK


@pytest.mark.slow
def test_llama_cpp_listens_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_llama() is None:
        pytest.skip("no llama.cpp here")
    monkeypatch.setitem(ALL, "a check", "train().export.gguf('q8_0', verify=True)")
    assert carried_out("a check", tmp_path) == set()


def test_a_run_of_one_process_opens_no_port(start, until) -> None:
    ours = psutil.Process()
    before = {socket for socket in listening() if holds(ours, socket)}
    run = start(steps=5000)
    until(run, lambda event: isinstance(event, events.Step))
    family_now = [ours, *ours.children(recursive=True)]
    assert {socket for socket in listening() if any(holds(one, socket) for one in family_now)} == before


def test_a_port_is_heard() -> None:
    """Else nothing would be found, whatever listens."""
    mark = f"{os.getpid()} heard"
    code = "import socket, sys\ns = socket.socket(socket.AF_INET6)\ns.bind(('::', 0))\ns.listen()\nsys.stdin.read()"
    with heard(-1, mark) as found:
        one = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, MARK: mark}, stdin=subprocess.PIPE)
        for _ in range(600):
            if found:
                break
            threading.Event().wait(0.1)
        one.communicate(b"")
    assert found == {"::"}
