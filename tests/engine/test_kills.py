"""kill -9 of a command line, of a kernel and of a worker, with one process and with two, at random moments:

nothing of it lives on, no step that was saved is lost, and the rest of the run equals one that was never killed.
`NBTUNE_TEST_KILLS=3 python -m pytest -s tests/engine/test_kills.py -m slow` is a short one, and
`NBTUNE_TEST_KILL_SECONDS=300` begins no further life after so long.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

import nbtune
from nbtune import events
from nbtune.store import checkpoints
from nbtune.store.control import wish
from nbtune.store.lock import is_owned
from tests.engine.lives import Lives, family

KILLS = int(os.environ.get("NBTUNE_TEST_KILLS", "50"))
SECONDS = float(os.environ.get("NBTUNE_TEST_KILL_SECONDS", "inf"))
SPEC = """
data: nbtune/persona
steps: 4000
batch_size: 2
learning_rate: 1e-3
adapter: {r: 4, dropout: 0.1}
checkpoint: {every: 1}
eval: {split: 0}
device: cpu
"""


def spec_for(processes: int) -> str:
    """Return the spec of a run: each process draws what its own rows drop, so that two are one only without dropout."""
    return SPEC if processes == 1 else SPEC.replace("dropout: 0.1", "dropout: 0")


GONE = 10.0  # seconds in which nothing of a killed one may be left
PATIENCE = 240  # seconds that a busy machine is given for it

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")


@pytest.fixture(scope="module")
def lives():
    with Lives() as made:
        yield made


class Killed:
    """A run that is begun, killed, and gone on with, over and over."""

    def __init__(self, lives: Lives, door: str, processes: int, place: Path, chance: random.Random) -> None:
        self.lives, self.door, self.processes, self.place, self.chance = lives, door, processes, place, chance
        self.runs, self.mark, self.client = place / "runs", f"{chance.random():.17f}", None
        self.preparing = 3.0 if processes == 1 else 20.0  # seconds until the first step, about
        self.saved, self.saves, self.slow, self.late, self.pid = 0, 0, 0.0, 0, -1
        text = spec_for(processes) + f"gpus: {processes}\n"
        (place / "spec.yaml").write_text(text)

    @property
    def run(self) -> nbtune.Run | None:
        """The run, once a life has come as far as making its folder."""
        found = nbtune.runs(self.runs)
        assert len(found) <= 1, "a run was begun twice"
        return found[0] if found else None

    def once(self) -> None:
        """One life and its end."""
        before = 0 if self.run is None else len(self.run.events())
        pid = self.pid = self._begin()
        began = time.monotonic()
        moment = self.chance.choice(["at any time", "after a step", "after a checkpoint"])
        if moment == "at any time":
            self._wait_seconds(pid, self.chance.uniform(0, self.preparing))
        else:
            self._wait_for(events.Step if moment == "after a step" else events.Checkpoint, pid, before)
            self.preparing = time.monotonic() - began
            self._wait_seconds(pid, self.chance.uniform(0, 1.5))
        self._kill(pid)
        self._look(before)

    def _begin(self) -> int:
        run = self.run
        if self.door == "worker":
            if run is None:
                self._make()
            assert self.run is not None
            wish(self.run.folder, mode="run")
            return self.lives.begin("worker", [str(self.run.folder)], self.place, self.mark)
        if self.door == "cli":
            words = ["train", "spec.yaml", "--name", "demo"] if run is None else ["resume", "demo"]
            return self.lives.begin("cli", [*words, "--runs", "runs"], self.place, self.mark)
        return self._begin_kernel(new=run is None)

    def _make(self) -> None:
        """A run's folder, as it is before its worker has done anything."""
        run = nbtune.finetune(spec_for(self.processes), name="demo", runs_dir=self.runs)
        run.stop(wait=True)
        run.free()
        text = (run.folder / "spec.yaml").read_text()
        (run.folder / "spec.yaml").write_text(text + f"gpus: {self.processes}\n")

    def _begin_kernel(self, new: bool) -> int:
        from jupyter_client.blocking import BlockingKernelClient
        from jupyter_client.connect import write_connection_file

        file, _ = write_connection_file(str(self.place / f"kernel-{time.time_ns()}.json"))
        pid = self.lives.begin("kernel", [file], self.place, self.mark)
        client = BlockingKernelClient(connection_file=file)
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(timeout=240)
        text = (self.place / "spec.yaml").read_text()
        cell = f"get_ipython().run_cell_magic('finetune', '--name demo', {text!r})" if new else "%nbtune resume demo"
        content = {"code": f"%load_ext nbtune\n{cell}", "silent": False, "store_history": True}
        message = client.session.msg("execute_request", content, metadata={"cellId": "a-cell"})
        client.shell_channel.send(message)
        self.client = client
        return pid

    def _alive(self, pid: int) -> None:
        if not psutil.pid_exists(pid):
            said = (self.place / "life.log").read_text()[-1500:]
            raise AssertionError(f"it has ended by itself: {said}; {self.run and self.run.events()[-2:]}")

    def _wait_seconds(self, pid: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._alive(pid)
            time.sleep(0.01)

    def _wait_for(self, kind: type, pid: int, before: int) -> None:
        """Wait until it has told of a new step, or of a checkpoint."""
        while not (self.run and any(isinstance(e, kind) for e in self.run.events()[before:])):
            self._alive(pid)
            time.sleep(0.05)

    def close(self) -> None:
        """End what still lives."""
        for process in family(self.pid, self.mark):
            process.kill()

    def _kill(self, pid: int) -> None:
        whole = family(pid, self.mark)
        victims = whole if self.door == "worker" else [process for process in whole if process.pid == pid]
        os.kill(self.chance.choice(victims).pid, signal.SIGKILL)
        killed = time.monotonic()
        while (left := family(pid, self.mark, whole)) and time.monotonic() - killed < PATIENCE:
            whole = left
            time.sleep(0.05)
        if self.client is not None:
            self.client.stop_channels()
            self.client = None
        took = time.monotonic() - killed
        time.sleep(0.3)  # one that was about to be started has its name by now
        left = left or family(pid, self.mark)
        self.slow, self.late = max(self.slow, took), self.late + (took > GONE)
        assert not left, [process.cmdline() for process in left]

    def _look(self, before: int) -> None:
        """What was saved is there and whole, and the life began where the one before it had saved."""
        run = self.run
        if run is None:
            return
        assert not is_owned(run.folder), "the lock of a dead process blocks"
        assert run.state in ("interrupted", "stopped"), run.events()[-1]
        new = run.events()[before:]
        self.saves += sum(isinstance(event, events.Checkpoint) for event in new)
        began = next((event.step for event in new if isinstance(event, events.Step)), None)
        assert began in (None, self.saved + 1), f"saved at {self.saved}, went on at {began}"
        told = max((event.step for event in run.events() if isinstance(event, events.Checkpoint)), default=0)
        last = checkpoints.latest(run.folder)
        self.saved = 0 if last is None else int(last.name.removeprefix("step-"))
        assert self.saved >= told, "a step that was saved is gone"
        if last is not None:
            assert json.loads((last / "progress.json").read_text())
            assert load_file(last / "trainable.safetensors")
            assert torch.load(last / "optimizer.pt", weights_only=True)


def _losses(run: nbtune.Run) -> dict[int, float]:
    return {event.step: event.loss for event in run.events() if isinstance(event, events.Step)}


def _until(run: nbtune.Run, step: int) -> None:
    """Let it work until it has done a step, and stop it."""
    while run.step < step and run.alive:
        time.sleep(0.02)
    run.stop(wait=True)
    run.free()


def _kill_over_and_over(lives: Lives, door: str, processes: int, kills: int, tmp_path: Path) -> None:
    seed, began = time.time_ns(), time.monotonic()
    killed = Killed(lives, door, processes, tmp_path, random.Random(seed))
    try:
        for number in itertools.count(1):
            killed.once()
            if (number >= kills or time.monotonic() - began > SECONDS) and killed.run is not None:
                break
        run = killed.run
        assert run is not None
        text = (run.folder / "spec.yaml").read_text().replace(f"gpus: {processes}", "gpus: 1")
        (run.folder / "spec.yaml").write_text(text)
        _until(run.resume(), killed.saved + 3)
        whole = nbtune.finetune(spec_for(processes), name="whole", runs_dir=tmp_path / "whole")
        _until(whole, run.step)
        found, right = _losses(run), _losses(whole)
        assert sorted(found) == list(range(1, run.step + 1))
        expected: Any = {step: right[step] for step in found}
        assert found == (expected if processes == 1 else pytest.approx(expected, rel=1e-5)), seed
    except BaseException:
        print(f"seed {seed}", file=sys.stderr)
        raise
    finally:
        killed.close()
    print(
        f"{door}, {processes} processes: {number} kills, {run.step} steps, {killed.saves} saved; nothing is left "
        f"after {killed.slow:.1f} s at most ({killed.late} times over {GONE:.0f} s)",
        file=sys.stderr,
    )


@pytest.mark.slow  # by chance; once and at a place of its own: test_run.py, test_detached.py
@pytest.mark.parametrize("door", ["cli", "kernel"])
def test_what_is_killed_leaves_nobody_behind_and_goes_on(lives, door, tmp_path):
    _kill_over_and_over(lives, door, 1, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("door", ["cli", "kernel", "worker"])
def test_fifty_kills_of_each(lives, door, processes, tmp_path):
    _kill_over_and_over(lives, door, processes, KILLS, tmp_path)
