"""kill -9 at random points, also inside a checkpoint: the rest of the run equals one that was never killed.

Most of the life of a short process is importing, so each life here is a fork of one that has imported everything: the
50 kills fall into the run and not into the imports.
"""

import contextlib
import os
import random
import signal
import sys
import time

import pytest

import nbtune
from nbtune.atomic_io import read_json
from nbtune.store import checkpoints
from nbtune.store.control import wish
from nbtune.store.lock import is_owned

KILLS = int(os.environ.get("NBTUNE_TEST_KILLS", "50"))
ROWS = [{"prompt": f"What is {a} plus {b}?", "completion": f"{a + b}."} for a in range(8) for b in range(8)]
SPEC = {
    "data": "rows",
    "steps": 150,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "adapter": {"r": 4, "dropout": 0.1},
    "checkpoint": {"every": 2},
    "eval": {"split": 0.1, "every": 50},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked"),
]

# What reads along while the run is killed: whatever it sees must be whole.
_SEEN = "a reader saw half a file"


def _life(folder) -> int:
    """A process that works on the run, as `python -m nbtune.engine` does; its pid."""
    pid = os.fork()
    if pid == 0:
        from nbtune.engine.worker import main

        os._exit(main(folder))
    return pid


def _ended(pid) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _kill(pid) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _inside_a_checkpoint(folder) -> bool:
    return any((folder / "checkpoints").glob(".step-*.tmp"))


def _live_until(folder, chance, moment) -> bool:
    """One life, killed inside its n-th checkpoint or at any time; True if it came to its end before."""
    pid, begun = _life(folder), time.monotonic()
    after, nth = chance.uniform(0, 2.5), chance.randint(1, 4)
    seen: set[str] = set()
    while not _ended(pid):
        _look(folder)
        seen.update(path.name for path in (folder / "checkpoints").glob(".step-*.tmp"))
        if (moment == "checkpoint" and len(seen) >= nth) or (moment == "any" and time.monotonic() - begun > after):
            if moment == "checkpoint":
                time.sleep(chance.uniform(0, 0.01))
            _kill(pid)
            return False
    return True


def _look(folder) -> None:
    """As a monitor, a resume and an export would look, at any time."""
    for name in ("plan.json", "environment.json"):
        path = folder / name
        assert not path.exists() or read_json(path) is not None, _SEEN
    last = checkpoints.latest(folder)
    with contextlib.suppress(FileNotFoundError):  # the oldest went meanwhile
        if last is not None:
            assert {"trainable.safetensors", "optimizer.pt", "progress.json"} <= set(os.listdir(last)), _SEEN


def _killed_over_and_over(folder, chance, kills) -> tuple[int, int]:
    """Lives until the run is finished; the number of kills, and of those inside a checkpoint."""
    inside = 0
    for _ in range(1000):
        moment = "none" if kills >= KILLS else "checkpoint" if kills % 2 else "any"
        if _live_until(folder, chance, moment):
            return kills, inside
        kills += 1
        inside += _inside_a_checkpoint(folder)
        assert nbtune.attach(folder).state in ("interrupted", "finished")  # finished: killed after its last word
        assert not is_owned(folder), "the lock of a dead process blocks"
    raise AssertionError("it never came to its end")


def _losses(run):
    history = run.history
    return history["loss"].to_dict(), history["eval_loss"].dropna().to_dict()


def test_fifty_kills_leave_the_losses_of_the_uninterrupted_run(tmp_path):
    whole = nbtune.finetune(SPEC, name="whole", rows={"rows": ROWS}, runs_dir=tmp_path).wait()
    whole.free()
    seed = time.time_ns()
    chance, kills, inside, runs = random.Random(seed), 0, 0, 0
    while kills < KILLS:
        run = nbtune.repeat(whole.folder)
        run.stop(wait=True)
        run.free()
        wish(run.folder, mode="run")
        kills, more = _killed_over_and_over(run.folder, chance, kills)
        inside, runs = inside + more, runs + 1
        again = nbtune.attach(run.folder)
        assert again.state == "finished", seed
        assert _losses(again) == _losses(whole), seed
        assert not list(again.folder.glob("checkpoints/.*")), "what a kill has left is swept up"
    print(f"seed {seed}: {kills} kills of {runs} runs, {inside} inside a checkpoint", file=sys.stderr)
    assert inside >= KILLS // 10
