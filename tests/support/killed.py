"""Runs of several processes of which one is killed at any moment, and which others then go on with.

python -m tests.support.killed FOLDER TIMES [SEED]        one JSON line a kill

Processes are forks of this one, which has imported what takes long; else each is what the launcher (`nbtune.engine`)
starts: `nbtune.engine.worker.main` with a rank, a meeting place and a pipe that closes with its parent.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = [
    {"prompt": f"What is {a} plus {b}?", "completion": f"It is {a + b}, sailor."} for a in range(6) for b in range(5)
]
STEPS = 8
KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "parted": {"weights": "sharded", "gpus": "all"},
    "full": {"weights": "sharded", "gpus": "all", "adapter": "full"},
}


class Group:
    """The processes of a run."""

    def __init__(self, folder: Path, count: int) -> None:
        self.meeting = tempfile.mkdtemp(prefix="killed-")
        self.pids, self.pipes = [], []
        for rank in range(count):
            mine, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                _be(folder, rank, count, self.meeting, mine, [theirs, *self.pipes])
            os.close(mine)
            self.pids.append(pid)
            self.pipes.append(theirs)

    def kill(self, rank: int) -> None:
        os.kill(self.pids[rank], signal.SIGKILL)

    def wait(self, seconds: float) -> list[int | None]:
        """Wait for all; exit codes by rank, None for one that had to be ended."""
        codes: list[int | None] = [None] * len(self.pids)
        until, left = time.monotonic() + seconds, dict(enumerate(self.pids))
        while left and time.monotonic() < until:
            for rank, pid in list(left.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    del left[rank]
            time.sleep(0.02)
        for pid in left.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for pipe in self.pipes:
            os.close(pipe)
        shutil.rmtree(self.meeting, ignore_errors=True)
        return codes


def _be(folder: Path, rank: int, count: int, meeting: str, pipe: int, others: list[int]) -> None:
    """Be one of them, and never return."""
    code = 1
    try:
        os.dup2(pipe, 0)
        for one in (pipe, *others):
            os.close(one)
        out = os.open(folder / "worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ |= {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank), "NBTUNE_MEETING": meeting}
        from nbtune.engine.worker import main

        code = main(folder)
    except BaseException:  # noqa: BLE001 — its folder says why
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def folder_of(runs: Path, name: str, **fields: Any) -> Path:
    """A run's folder, which nobody has begun."""
    import nbtune

    spec = {
        "model": "nbtune/tiny", "data": "rows", "steps": STEPS, "batch_size": 5, "learning_rate": 1e-3, "device": "cpu",
        "eval": {"split": 0.2, "every": 4}, "checkpoint": {"every": 2, "keep": 2}, **fields,
    }  # fmt: skip
    return nbtune.submit(spec, rows={"rows": ROWS}, slurm="gpus=1", send=False, name=name, runs_dir=runs).folder


def losses(folder: Path) -> dict[int, float]:
    from nbtune import events
    from nbtune.store.event_log import EventReader

    return {e.step: e.loss for e in EventReader(folder / "events.jsonl").read() if isinstance(e, events.Step)}


def begun(folder: Path) -> float | None:
    """When a run began its steps."""
    from nbtune import events
    from nbtune.store.event_log import EventReader

    told = EventReader(folder / "events.jsonl").read() if (folder / "events.jsonl").is_file() else []
    return next((e.time for e in told if isinstance(e, events.State) and e.state == "running"), None)


def said(folder: Path) -> list[str]:
    """What it said that it failed of: nothing, since whoever started a process that is killed knows why."""
    from nbtune import events
    from nbtune.store.event_log import EventReader

    told = EventReader(folder / "events.jsonl").read()
    return [e.detail[:200] for e in told if isinstance(e, events.State) and e.state == "failed"]


def one(number: int, base: Path, chance: random.Random, undisturbed: dict[str, tuple[dict[int, float], float]]) -> None:
    """Kill one process of a run, go on with another number, and compare its losses with an undisturbed one's."""
    kind = [*KINDS][number % len(KINDS)]
    true, lasts = undisturbed[kind]
    folder = folder_of(base / f"{number}", kind, **KINDS[kind])
    least = 1 if kind == "whole" else 2
    before = chance.choice([2, 3, 4])
    after = chance.choice([n for n in range(least, 5) if n != before])
    group, moment = Group(folder, before), chance.uniform(-0.15, 1.05)  # of the time that its steps take
    until = time.monotonic() + 600
    while moment > 0 and begun(folder) is None and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(max(0.0, moment) * lasts * before if moment > 0 else chance.uniform(0, 4))
    victim = chance.randrange(before)
    group.kill(victim)
    at, reached = time.monotonic(), max(losses(folder), default=0)
    codes = group.wait(60)
    noticed = time.monotonic() - at
    saved = sorted(int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*"))
    again = [0] if codes == [0] * before else Group(folder, after).wait(600)
    found = losses(folder)
    apart = max((abs(found.get(step, 1e9) - loss) for step, loss in true.items()), default=1e9)
    told = {
        "number": number, "kind": kind, "before": before, "killed": victim, "reached": reached, "saved": saved,
        "codes": codes, "noticed_s": round(noticed, 1), "after": after, "again": again, "apart": round(apart, 8),
        "said": said(folder),
    }  # fmt: skip
    print(json.dumps(told), flush=True)


def main(base: Path, times: int, seed: int = 0) -> None:
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import nbtune.engine.worker
    import nbtune.train.loop  # noqa: F401

    torch.set_num_threads(1)
    chance = random.Random(seed)
    undisturbed = {}
    for kind, fields in KINDS.items():
        alone = {key: value for key, value in fields.items() if key == "adapter"}
        folder = folder_of(base / "undisturbed", kind, **alone)
        codes = Group(folder, 1).wait(600)
        assert codes == [0], (folder / "worker.log").read_text()[-3000:]
        from nbtune import events
        from nbtune.store.event_log import EventReader

        told = EventReader(folder / "events.jsonl").read()
        last = max(e.time for e in told if isinstance(e, events.Checkpoint))
        undisturbed[kind] = losses(folder), last - (begun(folder) or last)
    for number in range(times):
        one(number, base, chance, undisturbed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
