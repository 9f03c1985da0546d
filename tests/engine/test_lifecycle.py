"""A kernel that has seen ten runs is as it was: no threads, files, children or models are left behind."""

import json
import shutil
import subprocess
import sys

import pytest

import nbtune
from nbtune import events
from nbtune.errors import TrainError

TEN = """
import ctypes, gc, json, sys, threading, weakref
import psutil
import nbtune
from nbtune.errors import NbtuneError, TrainError

def left():
    gc.collect()
    if sys.platform == "linux":  # else what was given back counts: it comes and goes by 40 MiB, for any number of runs
        ctypes.CDLL(None).malloc_trim(0)
    for thread in threading.enumerate():
        if thread.name.startswith("nbtune-"):
            thread.join(60)
    process = psutil.Process()
    ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("nbtune-")]
    files = [file.path for file in process.open_files() if "runs" in file.path]
    handles = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return {"left": [*ours, *files, *map(str, process.children())], "threads": threading.active_count(),
            "handles": handles, "memory": process.memory_info().rss}

rows = [{"prompt": f"What is {n} plus 1?", "completion": f"It is {n + 1}, sailor."} for n in range(36)]
def start(name, steps=6, **fields):
    detach, spec = fields.pop("detach", False), {"steps": steps, "batch_size": 4, "eval": {"split": 0}, **fields}
    where = {"rows": {"rows": rows}, "runs_dir": sys.argv[1], "detach": detach}
    return nbtune.finetune({"data": "rows", "learning_rate": 1e-3, **spec}, name=name, **where)

failing = {3: {"sequence_len": 8}, 6: {"learning_rate": 1e30, "max_grad_norm": 0, "warmup_ratio": 0, "steps": 20}}
for number in range(3):  # what is imported once stays, and each thread's first memory
    start(f"warm-up-{number}").wait().free()
before, models, states = left(), [], []
for number in range(10):
    run = start(f"run-{number}", detach=number == 8, **failing.get(number, {}))
    run.subscribe(lambda *_: None)
    try:
        run.wait()
    except NbtuneError:
        assert number in failing
    states.append(run.state)
    if run._model.launched is not None and run._model.launched._built is not None:
        models.append(weakref.ref(run._model.launched._built.model))
    run.free()
try:
    run.resume()
    again = "it went on"
except TrainError as error:
    again = str(error)
del run
after = left()
alive = sum(model() is not None for model in models)
said = {"before": before, "after": after, "states": states, "models": len(models), "alive": alive, "again": again}
print(json.dumps(said))
"""


def test_ten_runs_with_failures_and_a_detached_one_leave_nothing_behind(tmp_path):
    """In a process of their own: what other tests have left would hide theirs, or be taken for it."""
    done = subprocess.run([sys.executable, "-c", TEN, str(tmp_path / "runs")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)  # and nothing else is printed
    before, after = found["before"], found["after"]
    assert found["states"] == ["failed" if number in (3, 6) else "finished" for number in range(10)]
    assert "finished" in found["again"]
    assert (before["left"], after["left"]) == ([], [])
    assert after["threads"] <= before["threads"]
    assert after["handles"] <= before["handles"]
    assert after["memory"] - before["memory"] < 40 * 2**20  # ten models would be ten times that
    assert found["models"] == 7  # of the two that failed none is kept; one was another process's
    assert found["alive"] == 0


def test_a_copied_run_folder_is_a_run_of_its_own(start, tmp_path):
    import shutil

    run = start(steps=3).wait()
    copy = tmp_path / "elsewhere" / run.folder.name
    shutil.copytree(run.folder, copy)
    shutil.rmtree(run.folder)
    again = nbtune.attach(copy)
    assert again.state == "finished"
    assert len(again.history) == 3
    assert isinstance(again.generate("Hello", max_new_tokens=3), str)


def test_a_run_root_that_cannot_be_written_is_one_sentence(start, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError) as caught:
        nbtune.finetune(
            {"data": "rows"}, rows={"rows": [{"prompt": "a", "completion": "b"}]}, runs_dir=tmp_path / "file"
        )
    assert "NBTUNE_RUNS" in caught.value.fix


def test_a_disk_that_fills_up_in_a_checkpoint_keeps_the_checkpoint_before(start, monkeypatch):
    import errno

    from safetensors import torch as safetensors

    saved = safetensors.save_file

    def full(tensors, path, *args, **kwargs):
        if "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return saved(tensors, path, *args, **kwargs)

    monkeypatch.setattr(safetensors, "save_file", full)
    run = start(steps=6, checkpoint={"every": 2})
    with pytest.raises(TrainError, match="No space left"):
        run.wait()
    assert run.state == "failed"
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert run.resume().wait().step == 6


@pytest.mark.parametrize("detach", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_that_is_deleted_is_not_made_again(start, until, detach):
    run = start(steps=100_000, checkpoint={"every": 2}, detach=detach)
    until(run, lambda e: isinstance(e, events.Checkpoint))
    while run.folder.exists():
        shutil.rmtree(run.folder, ignore_errors=True)
    with pytest.raises(TrainError, match="was deleted while it worked") as caught:
        run.wait(240)
    assert "\n" not in caught.value.cause
    assert not run.folder.exists()
