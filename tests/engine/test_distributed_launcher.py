"""`gpus: 2`: two processes do one run, which is that of one: same losses, same wishes, one folder, one end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file

import nbtune
from nbtune import events
from nbtune.child_process import ChildProcess
from nbtune.engine import distributed_launcher
from nbtune.errors import NbtuneError, TrainError
from tests.support.every import every

TWO = {"device": "cpu", "gpus": 2}
MEASURED = {"eval": {"split": 0.2, "every": 4}}


def losses(run):
    return {e.step: e.loss for e in run.events() if isinstance(e, events.Step)}


def evals(run):
    return [e.loss for e in run.events() if isinstance(e, events.Eval)]


def workers(run):
    """The processes that train it, by their rank."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if str(run.folder) in process.cmdline() and process.environ().get("WORLD_SIZE") == "2":
                found[int(process.environ()["RANK"])] = process
        except psutil.Error:
            continue
    return found


def is_at_work(event):
    return isinstance(event, events.Step)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "sharded", "packed", "unaccelerated", "pairs"])
def test_two_processes_are_one(start, kind):
    more = {
        "whole": {},
        "sharded": {"weights": "sharded", "batch_size": 3},
        "packed": {"weights": "sharded", "packing": True, "batch_size": 3, "sequence_len": 96},
        "unaccelerated": {"weights": "sharded", "accelerate": False},
        "pairs": {"weights": "sharded", "method": "dpo", "batch_size": 3},
    }[kind]
    fields = {**MEASURED, **more, "samples": ["What is 1 plus 2?"]}
    rows = None
    if kind == "pairs":
        rows = [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No " * (i % 4 + 1)} for i in range(30)]
    alone = {key: value for key, value in fields.items() if key != "weights"}
    one = start("one", rows=rows, device="cpu", **alone).wait()
    two = start("two", rows=rows, **TWO, **fields).wait()
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert evals(two) == pytest.approx(evals(one), rel=1e-5)
    said = [[e.answer for e in run.events() if isinstance(e, events.Sample)] for run in (one, two)]
    assert said[0] == said[1]
    steps = [[(e.tokens, e.trained_tokens) for e in run.events() if is_at_work(e)] for run in (one, two)]
    assert steps[0] == steps[1]
    assert two.plan.gpus == 2
    assert two.plan.weights.shards == (more.get("weights") == "sharded")
    assert sum(isinstance(e, events.Checkpoint) for e in two.events()) == 1
    if kind == "packed":
        assert every(e.passed for e in two.events() if isinstance(e, events.Check))


@pytest.mark.slow
def test_each_process_is_heard_of(start):
    run = start(steps=300, **TWO).wait()
    told = [event for event in run.events() if isinstance(event, events.Processes)]
    assert told
    for event in told:
        assert len(event.seconds) == len(event.memory) == 2
        assert min(event.seconds) > 0
        assert min(event.memory) > 2**26
        assert event.sent == 4 * run.plan.trainable_parameters  # of two processes each sends half there, half back
        assert event.link > 0
    steps = {event.step: event for event in run.events() if is_at_work(event)}
    assert every(sum(event.tokens) > 0 and max(event.seconds) < 60 for event in told)
    assert sum(told[-1].tokens) in {event.tokens for event in steps.values()}


@pytest.mark.slow
def test_wishes_reach_all(start, until):
    run = start(steps=5000, samples=["Hi"], eval={"split": 0.2, "every": 20}, **TWO)
    until(run, is_at_work)
    run.pause()
    until(run, lambda e: isinstance(e, events.State) and e.state == "paused")
    run.sample()
    run.checkpoint()
    until(run, lambda e: isinstance(e, events.Checkpoint))
    until(run, lambda e: isinstance(e, events.Sample) and e.step == run.step)
    assert isinstance(run.generate("Hi", max_new_tokens=3), str)
    run.set_learning_rate(5e-4)
    run.unpause()
    until(run, lambda e: isinstance(e, events.Warning) and "learning rate set to 0.0005" in e.message)
    run.stop(wait=True)
    assert run.state == "stopped"
    assert not workers(run)


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [1, 3])
def test_it_goes_on_with_any_number(start, until, gpus):
    whole = start("whole", device="cpu", steps=12).wait()
    run = start("parts", steps=12, checkpoint={"every": 4, "keep": 9}, **TWO).wait()
    text = (run.folder / "spec.yaml").read_text().replace("gpus: 2", f"gpus: {gpus}")
    (run.folder / "spec.yaml").write_text(text)
    run.resume(step=4).wait()
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    assert run.plan.gpus == gpus


@pytest.mark.slow
def test_a_parted_run_is_stopped_resumed_and_exported(start, until):
    whole = start("whole", device="cpu", steps=30).wait()
    run = start("parted", steps=30, weights="sharded", **TWO)
    until(run, lambda e: is_at_work(e) and e.step >= 5)
    with pytest.raises(TrainError, match="parted among 2"):
        run.generate("Hi", max_new_tokens=3)
    run.stop(wait=True)
    assert 5 <= run.step < 30
    (run.folder / "spec.yaml").write_text((run.folder / "spec.yaml").read_text().replace("gpus: 2", "gpus: 1"))
    with pytest.raises(NbtuneError, match="weights `sharded` are parted"):
        run.resume().wait(240)
    (run.folder / "spec.yaml").write_text((run.folder / "spec.yaml").read_text().replace("gpus: 1", "gpus: 3"))
    run.resume().wait(200)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
    merged, usual = run.export.merged().path, whole.export.merged().path
    for name, weight in load_file(usual / "model.safetensors").items():
        torch.testing.assert_close(load_file(merged / "model.safetensors")[name], weight, atol=1e-3, rtol=1e-3)
    assert run.generate("What is 1 plus 2?") == whole.generate("What is 1 plus 2?")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_is_killed_the_run_ends_and_can_go_on(start, until, rank):
    run = start(steps=300, checkpoint={"every": 5}, **TWO)
    until(run, lambda e: isinstance(e, events.Checkpoint))
    both = workers(run)
    os.kill(both[rank].pid, signal.SIGKILL)
    with pytest.raises(TrainError, match=f"its process {rank + 1} of 2 was ended by signal 9"):
        run.wait(240)
    assert run.state == "interrupted"
    psutil.wait_procs(both.values(), timeout=240)
    assert not workers(run)
    run.resume()
    until(run, lambda e: isinstance(e, events.State) and e.state == "running" and e.step > 0)
    run.stop(wait=True)
    assert run.state == "stopped"


ASKS = """
import os, signal, sys, threading
import nbtune
from nbtune import events

run = nbtune.finetune(data="nbtune/persona", device="cpu", gpus=2, steps=100_000, runs_dir=sys.argv[1])
there = threading.Event()
run.subscribe(lambda new, _: any(isinstance(e, events.Step) for e in new) and there.set())
there.wait(240)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("detach", [False, True])
def test_a_run_of_several_processes_outlives_a_killed_kernel_only_if_it_is_detached(tmp_path, detach):
    """Otherwise it stops and is saved."""
    asks = ASKS.replace("gpus=2,", f"gpus=2, detach={detach},")
    assert subprocess.run([sys.executable, "-c", asks, str(tmp_path)], timeout=240).returncode == -signal.SIGKILL
    (run,) = nbtune.runs(tmp_path)
    if detach:
        assert run.alive
        run.stop()
    assert run._join(240)
    assert run.state == "stopped"
    assert (run.folder / "checkpoints" / f"step-{run.step:08d}").is_dir()


@pytest.mark.slow
def test_when_their_parent_is_gone_they_end(start, until):
    run = start(steps=5000, **TWO)
    until(run, is_at_work)
    both = list(workers(run).values())
    psutil.Process(both[0].ppid()).kill()
    gone, alive = psutil.wait_procs(both, timeout=240)
    assert len(gone) == 2
    assert not alive
    with pytest.raises(TrainError, match="was interrupted"):
        run.wait(240)


@pytest.mark.slow
def test_what_the_first_fails_of_is_said(start):
    run = start(learning_rate=1e38, max_grad_norm=0, steps=200, **TWO)
    with pytest.raises(NbtuneError, match="is no number any more"):
        run.wait(240)
    assert run.state == "failed"


@pytest.mark.parametrize("work", [nbtune.validate, nbtune.plan, nbtune.finetune])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"device": "cpu", "gpus": 999}, "asks for 999 processes, and this CPU"),
        ({"device": "cpu", "gpus": tuple(range(500, 999))}, "asks for 499 processes, and this CPU"),
        ({"device": "cpu", "gpus": 10**18}, "asks for 1000000000000000000 processes"),
        ({"gpus": [777]}, "GPU 777 was asked for"),
        ({"gpus": 10**18}, "GPUs were asked for"),
    ],
)
def test_more_than_there_is_is_refused_before_anything_starts(work, fields, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NbtuneError, match=words) as caught:
        work(data="nbtune/persona", **fields)
    assert "\n" not in caught.value.cause
    assert not list(tmp_path.glob("runs/*"))


def test_a_folder_that_asks_for_more_than_there_is_starts_nothing(start):
    run = start(steps=1).wait()
    text = (run.folder / "spec.yaml").read_text()
    (run.folder / "spec.yaml").write_text(f"{text}gpus: 999\ndevice: cpu\n".replace("steps: 1\n", "steps: 2\n"))
    with pytest.raises(NbtuneError, match="asks for 999 processes"):
        distributed_launcher.several(run.folder)


def test_who_ended_first_is_told_from_who_noticed(monkeypatch):
    """A process that fails may take longer to end than the one that notices: the reason is the first one's."""

    monkeypatch.setattr(distributed_launcher, "_GRACE", 240.0)  # so that the second may start late, too

    def worker(code, seconds):
        source = f"import sys, time; time.sleep({seconds}); sys.exit({code})"
        return ChildProcess(["-S", "-c", source], output="inherited")

    for codes, found in ((((3, 0), (1, 0.5)), (1, 1)), (((0, 0), (5, 0.5)), (1, 5)), (((0, 0), (0, 0.3)), None)):
        workers = [worker(*code) for code in codes]
        assert distributed_launcher._first_to_fail(workers) == found
        distributed_launcher._end(workers)
    stuck = [worker(0, 60), worker(1, 0)]
    try:
        distributed_launcher._end(stuck)
    finally:
        assert stuck[0].wait(240) == -signal.SIGTERM


def test_what_a_process_fails_of_stands_in_the_folder(start, tmp_path, monkeypatch):
    run = start(steps=1).wait()
    run.say(events.State(state="preparing"))
    monkeypatch.setenv(distributed_launcher.MEETING, str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    distributed_launcher.left_word(MemoryError("out of memory"), run.folder)
    distributed_launcher._say(run.folder, 1, 1, 2, tmp_path)
    assert run.state == "failed"
    assert "not enough memory" in str(run.error)
    run.say(events.State(state="preparing"))
    distributed_launcher._say(run.folder, 0, -9, 2, tmp_path)
    last = run.events()[-1]
    assert last.state == "interrupted"
    assert last.detail.startswith("its process 1 of 2 was ended by signal 9")
