"""Plain sentences about curves: said when they are true, once, and not otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from memory_run import MemoryRun

from nbtune import events as ev
from nbtune.widgets.run_state import RunView

TOTAL = 1000


def notes(losses, evals=()):
    view = RunView(MemoryRun(total_steps=TOTAL))
    view.add([ev.State(state="running", total_steps=TOTAL)])
    steps = [ev.Step(step=k + 1, loss=float(loss), seconds=0.1) for k, loss in enumerate(losses)]
    for start in range(0, len(steps), 50):
        view.add(steps[start : start + 50])
    view.add([ev.Eval(step=100 * (k + 1), loss=loss) for k, loss in enumerate(evals)])
    return [note["message"] for note in view.lists["notes"]]


FALLING = 3 * np.exp(-np.arange(TOTAL) / 300)


@pytest.mark.parametrize("evals", [[2.0, 1.0, 0.9, 0.95, 0.91], [1.0, 1.005, 1.004, 1.003], [1.0, 2.0], []])
def test_a_good_run_is_left_in_peace(evals):
    noise = np.random.default_rng(0).normal(0, 0.2, TOTAL)
    assert notes(FALLING + noise, evals) == []


def test_held_out_loss_that_rises_is_said_once_with_its_step():
    assert notes(FALLING, [2.0, 1.0, 1.1, 1.2, 1.3, 1.4]) == ["The held-out loss rises since step 200."]


def test_a_flat_loss_is_said_once():
    noise = np.random.default_rng(0).normal(0, 0.01, TOTAL)
    found = notes(2.0 + noise)
    assert len(found) == 1
    assert found[0].startswith("The loss has hardly moved in ")


def test_the_first_loss_that_is_no_number_is_named():
    losses = FALLING.copy()
    losses[400] = losses[700] = np.nan
    assert notes(losses) == ["The loss of step 401 is no number."]


def slowed(*said):
    view = RunView(MemoryRun())
    view.add([ev.Device(step=k, slowed=why, temperature=89, watts=450) for k, why in enumerate(said)])
    return [note["message"] for note in view.lists["notes"]]


def test_a_card_that_is_too_hot_for_long_is_said_once():
    assert slowed(*["heat"] * 9) == []
    assert slowed(*["", "heat"] * 12) == []
    assert slowed(*["heat", "heat, power", ""] * 20) == [
        "The GPU has lowered its clocks because it is too hot (89 °C)."
    ]


def test_a_power_limit_is_said_when_it_lasts():
    assert slowed(*["power"] * 60) == []
    assert slowed(*["power"] * 300) == ["The GPU works at its power limit (450 W)."]


def shares(*said):
    view = RunView(MemoryRun())
    view.add([ev.Processes(step=k, seconds=each, tokens=(64, 64, 0)[: len(each)]) for k, each in enumerate(said)])
    return [note["message"] for note in view.lists["notes"]], view.lists["metrics"]


def test_a_process_for_which_the_others_wait_is_named_once():
    said, drawn = shares(*[(0.5, 0.9)] * 40)
    assert said == ["Process 2 of 2 takes 1.8 times as long as the others for its share of a step."]
    assert drawn[-1] == {"step": 39, "values": {"process 1": 0.5, "process 2": 0.9}}
    assert shares(*[(0.5, 0.9), (0.9, 0.5)] * 20)[0] == []  # sometimes this one, sometimes that
    assert shares(*[(0.5, 0.9, 7.0)] * 20)[0] == []  # the third has no row
    assert shares((), (0.5,), (float("nan"), 0.1), *[(0.5, 0.6)] * 20)[0] == []


def test_of_many_processes_the_ends_and_the_middle_are_drawn():
    seconds = tuple(float(k) for k in range(1, 10))
    memory = tuple(k << 30 for k in range(1, 10))
    view = RunView(MemoryRun())
    view.add([ev.Processes(step=1, seconds=seconds, memory=memory, sent=9 * 10**9)])
    least, middle, most = ("process, least", "process, middle", "process, most")
    (item,) = view.lists["metrics"]
    assert item["values"] == {
        **{least: 1.0, middle: 5.0, most: 9.0},
        **{f"{least} GiB": 1.0, f"{middle} GiB": 5.0, f"{most} GiB": 9.0, "sent GB/s": 1.0},
    }
