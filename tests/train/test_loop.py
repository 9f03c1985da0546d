"""The loop's own clock, on a device that works while the host runs ahead; both clocks are made up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nbtune import events
from nbtune.errors import TrainError
from nbtune.train import loop
from nbtune.train.mean_loss import HeldOut
from nbtune.train.stepper import Updated
from tests.support.control import MemoryControl

STEP, EVALUATION = 4.0, 12.0  # seconds that the device, and the host, are at work on each


class SlowDevice:
    """Steps that are given to it one after another and done so, as by a GPU, to which each launch costs the host time.

    Args:
        launching: seconds of the host a step.
    """

    device, scaled = torch.device("mps"), False  # by name only: what is asked of it is asked of the host

    def __init__(self, launching: float) -> None:
        self.launching, self.host, self.free_at = launching, 100.0, 0.0

    def look_ahead(self, batches: Any, *, step: int) -> None:
        pass

    def accumulate(self, batch: Any, **_: Any) -> None:
        self.free_at = max(self.free_at, self.host) + STEP
        self.host += self.launching
        self.free_at = max(self.free_at, self.host)  # the last launch is the last to be done

    def update(self, learning_rate: float) -> Any:
        return Updated(self, self, {})  # type: ignore[arg-type]

    def discard(self) -> None:
        pass


def clocks(device: SlowDevice) -> tuple[type, type]:
    """`Moment` and `Later` as of `nbtune.device`, by the device's clocks."""

    class Moment:
        def __init__(self, *_: Any) -> None:
            self.at = max(device.free_at, device.host)

        def since(self, earlier: Moment) -> float:
            device.host = max(device.host, self.at)
            return self.at - earlier.at

    class Later(Moment):
        def read(self) -> list[float]:
            device.host = max(device.host, self.at)
            return [1.0, 1.0]

    return Moment, Later


@pytest.mark.parametrize("launching", [0.5, 3.9, 5.0])
@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_step_lasts_as_long_as_the_device_is_at_it_also_beside_evaluations(
    monkeypatch: pytest.MonkeyPatch, every: int, launching: float
) -> None:
    device = SlowDevice(launching)
    for name, clock in zip(("Moment", "Later"), clocks(device), strict=True):
        monkeypatch.setattr(loop, name, clock)

    def evaluate(look: Any) -> HeldOut:
        device.host += EVALUATION
        return HeldOut(1.0, 10, EVALUATION)

    batch = SimpleNamespace(num_tokens=10, num_trained=10, weight=10.0)
    batches = SimpleNamespace(steps_per_epoch=4.0, step=lambda _: [batch])
    said: list[events.Event] = []
    options = loop.LoopOptions(7, 1e-3, lambda _: 1.0, every, None, 1e9)
    jobs = loop.Jobs(
        save=lambda progress: events.Checkpoint(step=progress.step, folder=""),
        evaluate=evaluate,
        sample=lambda *_: (),
        between=lambda *_: None,
    )
    began, run = device.host, (device, batches, options, jobs)
    loop.train(*run, progress=loop.Progress(), emit=said.append, control=MemoryControl())  # type: ignore[arg-type]
    steps = [e for e in said if isinstance(e, events.Step)]
    assert [(e.step, e.epoch) for e in steps] == [(k, k / 4) for k in range(1, 8)]
    seconds = [e.seconds for e in steps]
    assert seconds == pytest.approx([max(STEP, launching)] * 7)
    evaluations = [e for e in said if isinstance(e, events.Eval)]
    assert sum(seconds) + EVALUATION * len(evaluations) == pytest.approx(device.host - began), "no second is lost"


def test_several_processes_grant_wishes_between_steps_only() -> None:
    """One of them may have fewer micro-batches: it would go on to the sums that the others have not come to."""
    for several, accumulated in ((False, 1), (True, 3)):
        device, control = SlowDevice(0.0), MemoryControl()

        def agree(numbers: Any, control: MemoryControl = control) -> Any:
            control.wish(mode="stop")  # is learnt of when all agree
            return numbers

        ended, _ = told(device, control, agree=agree, several=several)
        assert ended == "stopped"
        assert device.free_at - 100 == accumulated * STEP


def test_a_checkpoint_is_due_by_the_clock_of_any_process() -> None:
    """A checkpoint is checked by all of them: where one alone took its turn, its numbers would be added to a step's."""
    control = MemoryControl()
    _, saved = told(SlowDevice(0.0), control, agree=lambda own: [*own[:3], own[3] + 1], several=True)
    assert saved == [1, 2]
    _, saved = told(SlowDevice(0.0), control, agree=list, several=True)
    assert saved == [2]


def test_where_memory_is_short_in_another_process_this_one_gives_up_as_well() -> None:
    device, short, gave = SlowDevice(0.0), iter([True, False, False]), []

    def give_up(step: int, beside: bool = False) -> events.Event:
        assert not gave, "nobody was short of memory any more"
        gave.append(step)
        return events.Warning(message="less", step=step)

    agree = lambda own: [next(short)] if len(own) == 1 else own  # noqa: E731
    ended, _ = told(device, MemoryControl(), agree=agree, several=True, beside={"give_up": give_up})
    assert (ended, gave) == ("finished", [0])
    assert device.free_at - 100 == 3 * 3 * STEP  # the first step twice, and the second


@pytest.mark.parametrize(("begin", "wanted"), [(0, [0, 2]), (1, [2])])
def test_a_run_that_goes_on_gives_no_answers_again_where_it_was(begin: int, wanted: list[int]) -> None:
    asked: list[int] = []
    jobs = {"sample": lambda step, look: asked.append(step) or ()}
    told(SlowDevice(0.0), MemoryControl(), beside=jobs, progress=loop.Progress(step=begin))
    assert asked == wanted


def told(
    device: SlowDevice,
    control: MemoryControl,
    *,
    beside: Mapping[str, Any] | None = None,
    progress: loop.Progress | None = None,
    steps: int = 2,
    norms: Iterator[float] | None = None,
    rates: list[float] | None = None,
    **options: Any,
) -> tuple[str, list[int]]:
    """How steps of three micro-batches ended, and the steps that were saved."""
    batch = SimpleNamespace(num_tokens=10, num_trained=10, weight=10.0)
    batches = SimpleNamespace(steps_per_epoch=4.0, step=lambda _: [batch] * 3)
    said: list[events.Event] = []
    jobs: dict[str, Any] = {
        "save": lambda progress: events.Checkpoint(step=progress.step, folder=""),
        "evaluate": lambda look: None,
        "sample": lambda *_: (),
        "between": lambda *_: None,
    }
    cut = loop.LoopOptions(steps, 1e-3, lambda _: 1.0, 100, None, 1e9, **options)
    real, norms = torch.ones(()), norms or itertools.repeat(1.0)

    def update(learning_rate: float) -> Any:
        if rates is not None:
            rates.append(learning_rate)
        return Updated(real, real * next(norms), {})

    device.update = update  # type: ignore[method-assign]
    run: Any = (device, batches, cut, loop.Jobs(**{**jobs, **(beside or {})}))
    ended = loop.train(*run, progress=progress or loop.Progress(), emit=said.append, control=control)
    return ended, [event.step for event in said if isinstance(event, events.Checkpoint)]


@pytest.mark.parametrize("overflows", [1, 19, 20])
def test_a_scale_that_stays_too_high_ends_a_run_after_twenty_steps(overflows: int) -> None:
    """fp16's scale is halved at each overflow, and the step left out: one that never helps trains nothing."""
    device, norms = SlowDevice(0.0), iter([float("inf")] * overflows + [1.0] * 30)
    device.device, device.scaled = torch.device("cpu"), True
    if overflows < 20:
        assert told(device, MemoryControl(), steps=25, norms=norms)[0] == "finished"
        return
    with pytest.raises(TrainError, match=r"the gradient is no number any more \(step 20\)"):
        told(device, MemoryControl(), steps=25, norms=norms)


def test_a_rate_that_is_wished_for_is_taken_from_then_on_also_when_the_run_goes_on() -> None:
    control, progress, rates = MemoryControl(), loop.Progress(), list[float]()

    def between(_: Any) -> None:
        if progress.step == 2:
            control.wish(learning_rate=0.5)

    told(SlowDevice(0.0), control, progress=progress, steps=5, rates=rates, beside={"between": between})
    assert rates == [1e-3, 1e-3, 0.5, 0.5, 0.5]
    told(SlowDevice(0.0), MemoryControl(), progress=progress, steps=7, rates=rates)
    assert rates[5:] == [0.5, 0.5]
