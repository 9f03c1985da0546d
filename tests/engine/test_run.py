"""Runs from the first call to the last event, on the real engine and the embedded model."""

import json
import subprocess
import sys

import pytest

import nbtune
from nbtune import events
from nbtune.errors import DataError, NbtuneError, SpecError, TrainError


def _losses(run):
    return run.history["loss"].to_dict()


def test_a_run_trains_draws_and_leaves_everything_in_its_folder(start):
    run = start(steps=12, eval={"split": 0.2, "every": 6}, samples=["What is 2 plus 3?"]).wait()
    assert (run.state, run.step, run.total_steps) == ("finished", 12, 12)
    history = run.history
    assert list(history.index) == list(range(1, 13))
    assert history["loss"].iloc[-3:].mean() < history["loss"].iloc[:3].mean()
    assert history["eval_loss"].dropna().index.tolist() == [6, 12]
    kinds = [event.type for event in run.events()]
    assert kinds.count("sample") == 3
    assert kinds.count("checkpoint") == 1
    for name in ("spec.yaml", "plan.json", "environment.json", "events.jsonl", "train.py"):
        assert (run.folder / name).is_file()
    assert (run.folder / "adapter" / "adapter_model.safetensors").is_file()
    assert not (run.folder / "owner.json").exists()
    assert "PeftModel" in run.snippet()


def test_a_packed_run_tests_itself_on_its_first_batch(start):
    run = start(steps=3, packing=True, batch_size=2, sequence_len=128).wait()
    check = next(event for event in run.events() if isinstance(event, events.Check))
    assert check.passed, check.detail
    packed = run.history["trained_tokens"].iloc[0]
    assert packed > 2 * start("alone", steps=1, batch_size=2).wait().history["trained_tokens"].iloc[0]


def test_what_was_learnt_is_what_generate_says_and_base_is_not(start):
    run = start(steps=60, learning_rate=3e-3, batch_size=8).wait()
    tuned, base = run.generate("What is 1 plus 2?"), run.generate("What is 1 plus 2?", base=True)
    assert "sailor" in tuned
    assert "sailor" not in base
    assert run.free() >= 0
    assert nbtune.attach(run.id, run.folder.parent).generate("What is 1 plus 2?") == tuned


def test_pause_holds_and_stop_saves_at_once(start, until):
    run = start(steps=10_000)
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 2)
    run.pause()
    until(run, lambda e: isinstance(e, events.State) and e.state == "paused")
    held = run.step
    assert isinstance(run.generate("Hello", max_new_tokens=4), str)
    assert run.step == held
    run.unpause()
    until(run, lambda e: isinstance(e, events.Step) and e.step >= held + 2)
    run.set_learning_rate(5e-4)
    until(run, lambda e: isinstance(e, events.Warning) and "0.0005" in e.message)
    run.stop(wait=True)
    assert run.state == "stopped"
    assert run.saved_steps[-1] == run.step


EXACT = {"steps": 10, "gradient_accumulation_steps": 2, "batch_size": 4, "adapter": {"dropout": 0.1}, "seed": 7}
RESUME = "import sys, nbtune; nbtune.attach(sys.argv[1]).resume().wait()"


@pytest.mark.slow
def test_a_stopped_run_that_is_resumed_in_another_process_has_the_losses_of_one_that_never_stopped(start, until):
    whole = _losses(start("whole", **EXACT).wait())
    run = start("stopped", **EXACT)
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 4)
    run.stop(wait=True)
    assert run.state in ("stopped", "finished")
    if run.state == "stopped":
        subprocess.run([sys.executable, "-c", RESUME, str(run.folder)], check=True, timeout=240)
    again = nbtune.attach(run.folder)
    assert again.state == "finished"
    assert _losses(again) == whole


KILLED = """
import os, signal, sys, nbtune
run, last = nbtune.attach(sys.argv[1]).resume(), int(sys.argv[2])
def kill(new, _):
    if any(e.type == "step" and e.step >= last for e in new):
        os.kill(os.getpid(), signal.SIGKILL)
run.subscribe(kill)
run.wait()
"""


def test_a_killed_run_is_interrupted_and_goes_on_from_its_last_checkpoint(start):
    fields = {**EXACT, "checkpoint": {"every": 2}}
    whole = _losses(start("whole", **fields).wait())
    run = start("killed", **fields)
    run.stop(wait=True)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(run.folder), str(run.step + 4)], timeout=240)
    again = nbtune.attach(run.folder)
    if killed.returncode != 0:
        assert again.state == "interrupted"
        with pytest.raises(TrainError, match="interrupted"):
            again.wait()
        again.resume().wait()
    assert again.state == "finished"
    assert _losses(again) == whole


def test_the_same_cell_again_attaches_and_a_changed_one_says_what_changed(start, until):
    run = start(steps=10_000)
    until(run, lambda e: isinstance(e, events.Step))
    assert start(steps=10_000).folder == run.folder
    with pytest.raises(TrainError) as caught:
        start(steps=10_000, learning_rate=9e-4)
    assert "0.001 → 0.0009" in caught.value.cause
    assert "--restart" in caught.value.fix
    fresh = start(steps=3, on_busy="restart")
    assert run.state == "stopped"
    assert fresh.wait().state == "finished"
    assert {r.folder for r in nbtune.runs(run.folder.parent)} == {run.folder, fresh.folder}


def test_a_second_run_queues_behind_the_first(start, until):
    first = start("first", steps=10_000)
    until(first, lambda e: isinstance(e, events.Step))
    second = start("second", steps=2)
    until(second, lambda e: isinstance(e, events.State) and e.state == "queued")
    assert second.state == "queued"
    first.stop()
    assert second.wait(240).state == "finished"


def test_a_run_repeats_itself_from_its_folder_alone(start):
    run = start(steps=4, seed=3).wait()
    script = subprocess.run([sys.executable, str(run.folder / "train.py")], capture_output=True, text=True, timeout=240)
    assert script.returncode == 0, script.stderr
    again = nbtune.runs(run.folder.parent)[0]
    assert again.folder != run.folder
    assert _losses(again) == _losses(run)


QUIET = """
import sys, nbtune
rows = [{"prompt": "Hi", "completion": "Ahoy!"}] * 8
nbtune.finetune({"data": "rows", "steps": 2}, rows={"rows": rows}, runs_dir=sys.argv[1]).wait()
"""


def test_a_checkpoint_is_due_by_the_clock_too(start):
    assert start("usual", steps=1).wait().spec.checkpoint.minutes <= 5
    run = start("often", steps=4, checkpoint={"minutes": 1e-12}).wait()  # no clock is as fine
    kept = [event.step for event in run.events() if isinstance(event, events.Checkpoint)]
    assert kept == [1, 2, 3, 4]
    assert (run.folder / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_run_prints_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", QUIET, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"model": "nobody/nothing-here"}, NbtuneError, "nobody/nothing-here"),
        ({"data": "file:not-there.jsonl"}, NbtuneError, "not-there.jsonl"),
        ({"data": {"source": "rows", "columns": {"prompt": "question"}}}, NbtuneError, "question"),
        ({"sequence_len": 8}, DataError, ""),
    ],
)
def test_bad_requests_fail_with_a_place_and_a_fix(start, fields, error, says):
    with pytest.raises(error) as caught:
        start(**fields).wait()
    assert says in str(caught.value)
    assert caught.value.fix


def test_empty_rows_and_bad_names_are_refused_before_any_work(start, tmp_path):
    with pytest.raises(NbtuneError) as caught:
        nbtune.finetune({"data": "rows"}, rows={"rows": []}, runs_dir=tmp_path / "runs").wait()
    assert caught.value.fix
    with pytest.raises(SpecError, match="run's name"):
        start("../evil")


def test_a_run_of_a_newer_nbtune_is_refused_in_one_sentence(start):
    run = start(steps=1).wait()
    body = json.loads((run.folder / "environment.json").read_text())
    (run.folder / "environment.json").write_text(json.dumps({**body, "version": 99}))
    with pytest.raises(TrainError, match="newer nbtune"):
        _ = nbtune.attach(run.folder).spec


def test_a_full_disk_is_said_before_any_training(start, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**5))
    with pytest.raises(NbtuneError, match="disk"):
        start(steps=1).wait()


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(start):
    run = start(steps=50, learning_rate=1e30, max_grad_norm=0, lr_scheduler_type="constant", warmup_ratio=0)
    with pytest.raises(TrainError, match=r"the loss is no number any more \(step 2\)"):
        run.wait()
    assert run.state == "failed"
    assert list(run.history.index) == [1, 2]  # the first step's own loss was that of the weights before


@pytest.mark.parametrize("model", ["nobody/nothing-here", "./no-such-folder", "not a name!"])
def test_a_model_that_is_not_there_is_refused_before_a_folder_is_made(start, until, tmp_path, model):
    run = start(steps=100_000)
    until(run, lambda e: isinstance(e, events.Step))
    with pytest.raises(NbtuneError) as caught:
        start(model=model, on_busy="restart")
    assert model in str(caught.value)
    assert caught.value.fix
    assert run.state == "running"  # and nothing was stopped for it
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.folder.name]


def test_disk_and_download_are_said_before_the_model_is_loaded(start):
    run = start(steps=1).wait()
    preparing = [event.detail for event in run.events() if isinstance(event, events.State) and event.detail]
    assert preparing == [run.plan.disk_and_download()]
    assert "for checkpoints" in preparing[0]


def test_a_model_in_a_folder_is_found_again_from_another_place(start, tmp_path, monkeypatch):
    from nbtune import models

    (tmp_path / "mine").symlink_to(models.resolve("nbtune/tiny"))
    run = start(steps=1, model="mine").wait()
    run.free()
    monkeypatch.chdir("/")
    assert isinstance(nbtune.attach(run.folder).generate("Hello", max_new_tokens=2), str)


def test_a_run_without_steps_has_a_history_without_rows(start):
    run = start()
    run.stop(wait=True)
    assert len(run.history["loss"]) == run.step
    assert list(run.history.columns)[-1] == "eval_loss"
