"""What listens during everything that nbtune starts on one host, as `ss -ltn` would show it: nothing beyond the
loopback interface, and nothing after it."""

from __future__ import annotations

import contextlib
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

LOOPBACK = {"127.0.0.1", "::1"}
BEGIN = f"""
import json, os, subprocess, sys
import nbtune
SPEC, ROWS = {SPEC!r}, {ROWS!r}
MANY = [{{"prompt": f"What is {{a}} plus 1?", "completion": f"{{a + 1}}."}} for a in range(6000)]
def train(rows=ROWS, **fields):
    run = nbtune.finetune({{**SPEC, "device": "cpu", "steps": 3, **fields}}, name="demo", rows={{"rows": rows}})
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
    "tell('train', 'demo.yaml', '--name', 'demo')\ntell('resume', 'demo', '--set', 'steps=3')",
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


@contextlib.contextmanager
def heard(pid: int, mark: str) -> Iterator[set[str]]:
    """The addresses at which somebody of a family listens, at any time meanwhile."""
    found: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for process in family(pid, mark):
                with contextlib.suppress(psutil.Error):
                    found.update(c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN)

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
    ours = {name: value for name, value in os.environ.items() if name != "NBTUNE_RUNS"}
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + ALL[kind]], env={**ours, **environment, MARK: mark}, cwd=folder,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        with heard(process.pid, mark) as found:
            said = process.communicate()[0]
    assert process.returncode == 0, said[-3000:]
    left = family(process.pid, mark)
    psutil.wait_procs(left, timeout=60)
    assert not (still := family(process.pid, mark)), [one.cmdline() for one in still]
    return found


@pytest.mark.slow
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
def test_llama_cpp_listens_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_llama() is None:
        pytest.skip("no llama.cpp here")
    monkeypatch.setitem(ALL, "a check", "train().export.gguf('q8_0', verify=True)")
    assert carried_out("a check", tmp_path) == set()


def test_a_run_of_one_process_opens_no_port(start, until) -> None:
    def listening(process: psutil.Process) -> list[str]:
        return sorted(c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN)

    before = listening(psutil.Process())
    run = start(steps=5000)
    until(run, lambda event: isinstance(event, events.Step))
    assert listening(psutil.Process()) == before
    assert [listening(child) for child in psutil.Process().children(recursive=True) if listening(child)] == []
