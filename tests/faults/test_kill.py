"""kill -9 at random points, also inside a checkpoint: the rest of the run equals one that was never killed."""

import random
import subprocess
import sys
import time

import pytest

import nbtune
from nbtune.store.control import wish
from nbtune.store.log import EventReader

KILLS = 50
ROWS = [{"prompt": f"What is {a} plus {b}?", "completion": f"{a + b}."} for a in range(8) for b in range(8)]
SPEC = {
    "data": "rows",
    "steps": 1000,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "adapter": {"dropout": 0.1},
    "checkpoint": {"every": 1},
    "eval": {"split": 0.1, "every": 50},
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_leave_the_losses_of_the_uninterrupted_run(tmp_path):
    whole = nbtune.finetune(SPEC, name="whole", rows={"rows": ROWS}, runs_dir=tmp_path).wait()
    run = nbtune.finetune(SPEC, name="killed", rows={"rows": ROWS}, runs_dir=tmp_path)
    run.stop(wait=True)
    chance, kills = random.Random(0), 0
    while nbtune.attach(run.folder).state != "finished":
        begun = nbtune.attach(run.folder).step
        wish(run.folder, mode="run")
        worker = subprocess.Popen([sys.executable, "-m", "nbtune.store.worker", str(run.folder)])
        if kills < KILLS:
            while nbtune.attach(run.folder).step == begun and worker.poll() is None:
                time.sleep(0.02)  # until it trains: most of the life of a process is importing
            time.sleep(chance.uniform(0, 0.3))
            worker.kill()
            kills += 1
        worker.wait()
    assert kills >= KILLS or nbtune.attach(run.folder).step == 1000
    assert nbtune.attach(run.folder).history["loss"].to_dict() == whole.history["loss"].to_dict()
    assert (
        nbtune.attach(run.folder).history["eval_loss"].dropna().to_dict()
        == whole.history["eval_loss"].dropna().to_dict()
    )
    assert EventReader(run.folder / "events.jsonl").read()
