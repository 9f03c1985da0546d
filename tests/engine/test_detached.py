"""A detached run survives whoever started it, and obeys whoever attaches to it."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

import nbtune
from nbtune import events
from nbtune.errors import TrainError

START_AND_DIE = """
import os, signal, sys, nbtune
rows = [{"prompt": f"What is {a} plus {b}?", "completion": str(a + b)} for a in range(6) for b in range(6)]
spec = {"data": "rows", "steps": 100000, "batch_size": 4, "samples": ["Hello"]}
run = nbtune.finetune(spec, name="far", rows={"rows": rows}, runs_dir=sys.argv[1], detach=True)
def die(new, _):
    if any(e.type == "step" for e in new):
        print(run.folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
run.subscribe(die)
run.wait()
"""


def test_a_detached_run_outlives_its_kernel_answers_and_stops(tmp_path, until):
    kernel = subprocess.run(
        [sys.executable, "-c", START_AND_DIE, str(tmp_path)], capture_output=True, text=True, timeout=240
    )
    assert kernel.returncode == -9, kernel.stderr
    run = nbtune.attach(kernel.stdout.strip())
    try:
        assert run.state == "running"
        seen = run.step
        until(run, lambda e: isinstance(e, events.Step) and e.step > seen + 2)
        assert isinstance(run.generate("Hello", max_new_tokens=4), str)
    finally:
        run.stop(wait=True)
    assert run.state == "stopped"
    assert list(run.history.index) == list(range(1, run.step + 1))
    assert (run.folder / "worker.log").read_text() == ""


def test_two_handles_see_the_same_run_and_only_one_engine_writes(start, until):
    run = start("shared", steps=100_000)
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 3)
    other = nbtune.attach(run.folder)
    resumed = subprocess.run(
        [sys.executable, "-c", "import sys, nbtune; nbtune.attach(sys.argv[1]).resume()", str(run.folder)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "is at work" in resumed.stderr
    other.stop(wait=True)
    assert run.state == other.state == "stopped"
    assert [e.type for e in run.events()] == [e.type for e in other.events()]


LEAVES = """
import sys, nbtune
from nbtune import events
run = nbtune.attach(sys.argv[1]).resume(own_process=True)
before = run.step
import threading
moved = threading.Event()
run.subscribe(lambda new, _: any(e.type == "step" and e.step > before for e in new) and moved.set())
assert moved.wait(240)
"""


@pytest.mark.slow
def test_a_process_that_is_not_detached_is_stopped_and_saved_when_its_kernel_ends_in_order(start):
    run = start("near", steps=100_000)
    run.stop(wait=True)
    left = subprocess.run([sys.executable, "-c", LEAVES, str(run.folder)], capture_output=True, text=True, timeout=240)
    assert left.returncode == 0, left.stderr
    again = nbtune.attach(run.folder)
    assert again.state == "stopped"
    assert (run.folder / "checkpoints" / f"step-{again.step:08d}").is_dir()


def test_a_process_that_is_not_detached_is_stopped_and_saved_when_its_kernel_is_killed(start):
    run = start("near", steps=100_000)
    run.stop(wait=True)
    before, killed = run.step, f"{LEAVES}\nimport os\nos.kill(os.getpid(), 9)"
    left = subprocess.run([sys.executable, "-c", killed, str(run.folder)], capture_output=True, text=True, timeout=240)
    assert left.returncode == -signal.SIGKILL, left.stderr
    again = nbtune.attach(run.folder)
    again._join(240)
    assert again.state == "stopped"
    assert again.step > before
    assert (run.folder / "checkpoints" / f"step-{again.step:08d}").is_dir()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no hang-ups on Windows")
def test_a_hang_up_stops_and_saves(start, until):
    run = start("far", steps=100_000, detach=True)
    until(run, lambda e: isinstance(e, events.Step))
    (worker,) = (child for child in psutil.Process().children() if "nbtune.engine" in child.cmdline())
    os.kill(worker.pid, signal.SIGHUP)
    run.wait(240)
    assert run.state == "stopped"
    assert (run.folder / "checkpoints" / f"step-{run.step:08d}").is_dir()


LOOK = """
import sys, nbtune
from nbtune.errors import TrainError
run = nbtune.attach(sys.argv[1])
print(run.state)
try:
    run.resume()
except TrainError as error:
    print(error.cause)
"""


def test_others_see_a_run_that_waits_and_cannot_take_it(start, until):
    first = start("first", steps=100_000)
    until(first, lambda e: isinstance(e, events.Step))
    second = start("second", steps=2)
    until(second, lambda e: isinstance(e, events.State) and e.state == "queued")
    seen = subprocess.run([sys.executable, "-c", LOOK, str(second.folder)], capture_output=True, text=True, timeout=240)
    assert seen.stdout.splitlines() == ["queued", "the run `second` is at work"], seen.stderr
    first.stop(wait=True)
    assert second.wait().state == "finished"
    assert not list(second.folder.glob("*ing.json"))


def test_a_process_that_was_killed_is_said_to_be(start, until):
    run = start("far", steps=100_000, detach=True)
    assert run.state in ("queued", "preparing")
    until(run, lambda e: isinstance(e, events.State))
    assert run.state == "preparing"
    # a library may have children of its own: bitsandbytes makes torch 2.8 keep one that compiles
    (worker,) = (child for child in psutil.Process().children() if "nbtune.engine" in child.cmdline())
    worker.kill()
    with pytest.raises(TrainError, match="interrupted: its process was ended by signal 9"):
        run.wait()
    assert run.state == "interrupted"


def test_an_engine_that_was_taken_for_dead_stops_and_writes_no_more(start, until, monkeypatch):
    import json

    from nbtune.store import lock as store_lock

    monkeypatch.setattr(store_lock, "_BEAT", 0.05)
    run = start("taken", steps=100_000)
    until(run, lambda e: isinstance(e, events.Step))
    lock = run.folder / "owner.json"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "token": "another's", "host": "another"}))
    run._model.launched.thread.join(240)
    assert isinstance(run._model.launched.error, store_lock.TakenOver)
    said = (run.folder / "events.jsonl").read_bytes()
    assert run.events()[-1].type == "step"  # not a word about its own end
    assert json.loads(lock.read_text())["token"] == "another's"
    assert run.state == "running"  # as far as this machine can tell
    lock.unlink()
    assert run.state == "interrupted"
    assert (run.folder / "events.jsonl").read_bytes() == said
