"""Where a run stands, from its events alone."""

from __future__ import annotations

import pytest

from nbtune.events import Eval, State, Step, Warning
from nbtune.progress import Progress, duration


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (42, "0:42"), (723, "12:03"), (7500, "2:05:00")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_is_by_the_median_so_that_one_slow_step_does_not_scare() -> None:
    progress = Progress()
    progress.add([State(state="running", total_steps=110)])
    assert progress.seconds_left is None
    progress.add([Step(step=i, loss=1.0, seconds=60.0 if i == 5 else 2.0) for i in range(1, 11)])
    assert progress.seconds_left == 200.0


def test_an_ended_run_has_no_time_left_and_keeps_its_losses() -> None:
    progress = Progress()
    progress.add([State(state="running", total_steps=2), Step(step=1, loss=3.0, seconds=1.0)])
    progress.add([Eval(step=1, loss=2.5), Warning(message="it is cold"), Step(step=2, loss=1.0, seconds=1.0)])
    progress.add([State(state="finished", step=2, total_steps=2)])
    assert progress.ended
    assert progress.seconds_left is None
    assert (progress.first_loss, progress.loss, progress.eval_loss) == (3.0, 1.0, 2.5)
    assert progress.line() == "finished · step 2/2 · loss 1.0000 · eval 2.5000"
    assert [warning.message for warning in progress.warnings] == ["it is cold"]


def test_steps_of_which_only_each_tenth_is_said_are_reckoned_as_ten() -> None:
    progress = Progress()
    progress.add([State(state="running", total_steps=100), *(Step(step=k, loss=1.0, seconds=20.0) for k in (10, 20))])
    assert progress.seconds_left == pytest.approx(160.0)
