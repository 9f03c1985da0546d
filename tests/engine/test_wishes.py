"""Wishes of a person who looks on: each is granted at once, also in a pause, an evaluation or an answer."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

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


@contextmanager
def long_answer(run):
    """Somebody is told an answer that has no end of its own; yields (tokens so far, the thread, wait for more)."""
    told, more = [], threading.Condition()

    def hear(token):
        with more:
            told.append(token)
            more.notify_all()

    def await_more(count=3):
        wanted = len(told) + count
        with more:
            assert more.wait_for(lambda: len(told) >= wanted, 240)

    over = threading.Event()
    how = {"max_new_tokens": 100_000, "temperature": 100.0, "seed": 1}  # so hot that it does not come to an end
    thread = threading.Thread(target=lambda: run.generate("?", **how, told=hear, should_stop=over.is_set))
    thread.start()
    try:
        await_more()
        yield told, thread, await_more
    finally:
        over.set()
        thread.join(240)
    assert not thread.is_alive()


def since(run, began, kind, **fields):
    """Seconds from `began` to the first such event behind it."""
    fits = [e for e in said(run, kind) if e.time >= began and all(getattr(e, k) == v for k, v in fields.items())]
    return fits[0].time - began


def test_a_pause_holds_in_the_middle_of_an_answer_which_goes_on(start, until):
    run = start(steps=100_000)
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 2)
    with long_answer(run) as (_, thread, await_more):
        held = run.step
        for wish, state in ((run.pause, "paused"), (run.unpause, "running"), (run.pause, "paused")):
            began = time.time()
            wish()
            until(run, lambda e, state=state, began=began: getattr(e, "state", "") == state and e.time >= began)
            assert since(run, began, events.State, state=state) < 30  # not the minutes that the answer takes
            await_more()
            assert thread.is_alive()
    assert run.step == held
    assert run.state == "paused"  # the answer is over, the pause is not
    run.unpause()
    until(run, lambda e: isinstance(e, events.Step) and e.step > held)
    run.stop(wait=True)
    states = [event.state for event in said(run, events.State)]
    assert states[-7:] == ["running", "paused", "running", "paused", "running", "stopping", "stopped"]


def test_any_other_wish_ends_an_answer_and_is_granted(start, until):
    run = start(steps=100_000, samples=["Who are you?"])
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 2)
    wishes = {
        events.Checkpoint: run.checkpoint,
        events.Warning: lambda: run.set_learning_rate(1e-5),
        events.Sample: run.sample,
    }
    for kind, wish in wishes.items():
        with long_answer(run) as (told, thread, _):
            began = time.time()
            wish()
            until(run, lambda e, kind=kind, began=began: isinstance(e, kind) and e.time >= began)
            if kind is not events.Sample:  # whose own answer takes its time
                assert since(run, began, kind) < 30
            thread.join(240)  # what was said so far is the answer
            assert not thread.is_alive()
            assert len(told) < 5000
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
    assert [event.step for event in run.events() if isinstance(event, events.Step)] == [*range(1, 7), *range(3, 7)]
    assert [event.step for event in said(run, events.Step)] == [1, 2, 3, 4, 5, 6, 3, 4, 5, 6]
    assert sorted(path.name for path in (run.folder / "checkpoints" / "aside").iterdir())[0] == "step-00000004"
