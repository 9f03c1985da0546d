"""Wishes of a person who looks on: each is granted at once, also in a pause, an evaluation or an answer."""

from __future__ import annotations

import pytest

from nbtune import events
from nbtune.errors import TrainError

HELD_OUT = {"split": 0.9, "max_rows": 100_000, "every": 1}


def said(run, kind):
    return [event for event in run.events() if isinstance(event, kind)]


def test_stop_now_saves_nothing_more(start, until):
    run = start(steps=5000)
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 2)
    run.stop(save=False, wait=True)
    assert run.state == "stopped"
    assert not said(run, events.Checkpoint)
    assert not (run.folder / "adapter").exists()


def test_in_a_pause_it_saves_answers_and_takes_another_rate(start, until):
    run = start(steps=5000, samples=["Who are you?"])
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 2)
    run.pause()
    until(run, lambda e: isinstance(e, events.State) and e.state == "paused")
    held = run.step
    run.checkpoint()
    run.sample()
    run.set_learning_rate(1e-5)
    until(run, lambda e: isinstance(e, events.Checkpoint) and e.step == held)
    until(run, lambda e: isinstance(e, events.Sample) and e.step == held)
    until(run, lambda e: isinstance(e, events.Warning) and "1e-05" in e.message)
    assert run.state == "paused"
    run.unpause()
    until(run, lambda e: isinstance(e, events.Step) and e.step > held)
    assert len([e for e in said(run, events.Sample) if e.step == held]) == 1
    run.stop(wait=True)


def test_an_evaluation_does_not_hold_up_a_stop(start, until):
    run = start(data="nbtune/json-answers", steps=50, batch_size=1, eval=HELD_OUT)
    until(run, lambda e: isinstance(e, events.Step))
    run.stop(wait=True)
    assert run.state == "stopped"
    assert not said(run, events.Eval)  # it was in the middle of the first one


def test_a_run_goes_back_to_an_earlier_checkpoint(start):
    run = start(steps=6, checkpoint={"every": 2, "keep": 5}).wait()
    with pytest.raises(TrainError, match="there is no checkpoint of step 3"):
        run.resume(step=3)
    losses = run.history["loss"].tolist()
    run.resume(step=2).wait()
    assert run.history["loss"].tolist() == losses
    assert [event.step for event in said(run, events.Step)] == [1, 2, 3, 4, 5, 6, 3, 4, 5, 6]
    assert sorted(path.name for path in (run.folder / "checkpoints" / "aside").iterdir())[0] == "step-00000004"
