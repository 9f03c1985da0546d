"""Lives that begin at once: a process that has imported everything forks whoever is asked for.

    with Lives() as lives:
        pid = lives.begin("cli", ["train", "spec.yaml"], folder)

Most of the life of a short process is importing; of a fork it is the run, which is what kills are to fall into. The
processes that a life starts are real ones, and are known by a word in their environment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

MARK = "NBTUNE_TEST_LIFE"
IMPORTED = ("ipykernel.kernelapp", "peft", "torch", "transformers.models.llama.modeling_llama", "nbtune.cli.app",
            "nbtune.engine.worker", "nbtune.notebook")  # fmt: skip


class Lives:
    """Who forks; each life has a session and a log of its own."""

    def __enter__(self) -> Lives:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.lives"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")

    def begin(self, door: str, words: list[str], folder: Path, mark: str) -> int:
        """Fork a life that comes in by a door, in a folder; its pid."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"door": door, "words": words, "folder": str(folder), "environ": {**os.environ, MARK: mark}}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def family(pid: int, mark: str, known: Iterable[psutil.Process] = ()) -> list[psutil.Process]:
    """Return what lives of a life: itself, and every process that it or its children have started.

    Args:
        known: who was seen before: a process that is about to be gone tells no environment any more.
    """
    found = {process for process in known if _lives(process)}
    for process in psutil.process_iter():
        try:
            if process.pid == pid or process.environ().get(MARK) == mark:
                found |= {process} if _lives(process) else set()
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.pid)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _cli(words: list[str]) -> Any:
    from nbtune.cli import main

    return main(words)


def _kernel(words: list[str]) -> Any:
    from ipykernel.kernelapp import IPKernelApp

    return IPKernelApp.launch_instance(argv=["-f", *words])


def _worker(words: list[str]) -> Any:
    from nbtune.engine.worker import main

    return main(Path(words[0]))


DOORS: dict[str, Callable[[list[str]], Any]] = {"cli": _cli, "kernel": _kernel, "worker": _worker}


def _live(asked: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.update(asked["environ"])
    log = os.open("life.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = DOORS[asked["door"]](asked["words"]) or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork a life for each line of standard input, and say its pid."""
    for name in IMPORTED:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: they leave no zombie
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            _live(json.loads(line))
        print(pid, flush=True)


if __name__ == "__main__":
    main()
