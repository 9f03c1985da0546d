"""A real Ray cluster of two "machines": network namespaces joined by a cable, a raylet in each, ended with the test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tests.engine.test_node import CAN_JOIN, two_machines

ADDRESS = "10.77.0.1:6379"
_PORTS = {  # of the agents: Ray waits 15 s for those that it has to learn, which a busy machine needs to start them
    "metrics-export-port": 8080, "dashboard-agent-listen-port": 52365, "dashboard-agent-grpc-port": 52366,
    "runtime-env-agent-port": 52367,
}  # fmt: skip
_IMPORTING = 20.0  # seconds


def is_here() -> bool:
    """Whether such a cluster can be started."""
    return CAN_JOIN and find_spec("ray") is not None


class Machines:
    """Two machines, of which either may be lost."""

    def __init__(self, folder: Path, before: list[tuple[str, ...]]) -> None:
        self.folder, self.before = folder, before
        self.environment = {
            **os.environ, "RAY_ADDRESS": ADDRESS, "RAY_AUTH_MODE": "disabled", "GLOO_SOCKET_IFNAME": "cable",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300", "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
        }  # fmt: skip
        self.started: dict[int, subprocess.Popen[bytes]] = {}
        self.at: dict[int, float] = {}

    def start(self, number: int) -> None:
        """Start a raylet on a machine; on the first one what leads the cluster, too."""
        own = ["--head", "--port=6379", "--include-dashboard=false"] if number == 0 else [f"--address={ADDRESS}"]
        ports = [f"--{name}={port}" for name, port in _PORTS.items()]
        more = [f"--node-ip-address=10.77.0.{number + 1}", "--num-cpus=1", "--num-gpus=0", "--block", *ports]
        more += [f"--temp-dir={self.folder}", "--object-store-memory=100000000", "--disable-usage-stats"]
        with (self.folder / f"ray-{number}.log").open("ab") as log:
            command = [*self.before[number], sys.executable, "-m", "ray.scripts.scripts", "start", *own, *more]
            self.at[number] = time.monotonic()
            self.started[number] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stands(self, number: int) -> bool:
        """Whether the machines up to this one are there; one whose raylet gave up is started again: it waits 15 s for
        its agents, whatever it is told, which a busy machine needs to import them."""
        past = time.monotonic() - self.at[number]
        if past > _IMPORTING and not self.has_raylet(number):
            self.lose(number)
            self.start(number)
        return past > _IMPORTING and self.alive() == number + 1  # who asks needs the processor, too

    def has_raylet(self, number: int) -> bool:
        """Whether one works on a machine: what has started it notices its end after minutes only."""
        for pid in self.pids(number):
            try:
                if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
                    return True
            except OSError:
                continue
        return False

    def pids(self, number: int) -> list[int]:
        """What works on a machine."""
        ip, *_, name = self.before[number]
        said = subprocess.run([ip, "netns", "pids", name], capture_output=True, text=True, check=True).stdout
        return [int(pid) for pid in said.split()]

    def run(self, *command: str, number: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine."""
        words = [*self.before[number], *command]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=1200)

    def begin(self, *command: str) -> subprocess.Popen[str]:
        """Start a command on the first machine."""
        return subprocess.Popen(
            [*self.before[0], *command], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def lose(self, number: int) -> None:
        """Kill all that works on a machine (`kill -9`)."""
        for _ in range(20):
            pids = self.pids(number)
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.2)

    def alive(self) -> int:
        """How many machines Ray has."""
        code = "import ray; ray.init(log_to_driver=False); print('machines', sum(n['Alive'] for n in ray.nodes()))"
        said = self.run(sys.executable, "-c", code).stdout
        return int(said.rpartition("machines ")[2] or 0)


@contextmanager
def cluster(folder: Path) -> Iterator[Machines]:
    """Lend a cluster of two machines with a CPU each."""
    place = Path("/tmp") / f"nr{os.getpid()}"  # a socket's path has at most 107 letters
    place.mkdir()
    with two_machines() as before:
        machines = Machines(place, before)
        try:
            for number in range(2):
                machines.start(number)
                until(partial(machines.stands, number), 600)
            yield machines
        finally:
            for number in range(2):
                machines.lose(number)
            for one in machines.started.values():
                one.wait(20)
            logs = place / "session_latest" / "logs"
            if logs.is_dir():
                shutil.copytree(logs, folder / "ray-logs", ignore_dangling_symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.5)
