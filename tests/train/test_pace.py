"""What each of several processes does in a step before it waits for the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from nbtune import events
from nbtune.engine.telemetry import Gauge
from nbtune.train.pace import Pace, Told, processes

CPU = torch.device("cpu")


def a_step(pace: Pace, *tokens: int, gradients: int = 100) -> None:
    pace.begin()
    for count in tokens:
        pace.take(count)
    pace.ready()
    pace.summed([torch.zeros(gradients - 1), torch.zeros(1)])


def test_a_step_is_told_once_the_next_has_begun() -> None:
    pace = Pace(CPU, 4)
    assert pace.told() is None
    a_step(pace, 10, 5)
    assert pace.told() is None
    pace.begin()  # memory was short, and it is begun again
    pace.begin()
    told = pace.told()
    assert told is not None
    assert (told.tokens, told.sent) == (15, 3 * 2 * 4 * 100 // 4)
    assert told.memory > 0
    assert told.seconds >= 0
    assert told.exchange >= 0
    a_step(pace, gradients=7)  # no row of its own
    pace.begin()
    pace._at = float("-inf")
    told = pace.told()
    assert told is not None
    assert (told.tokens, told.sent) == (0, 3 * 2 * 4 * 7 // 4)


def test_weights_that_are_lent_count_for_each_micro_batch() -> None:
    def weight(numbers: int, **more: Any) -> Any:
        return SimpleNamespace(numel=lambda: numbers, element_size=lambda: 2, **more)

    frozen, trained = (weight(1000, placements=(), requires_grad=wanted) for wanted in (False, True))
    for weights, sent in (([frozen], 1000 * 4), ([frozen, trained], 1000 * 4 + 1000 * 8), ([weight(9)], 0)):
        pace = Pace(CPU, 2, weights)
        a_step(pace, 1, 1, 1, gradients=1)
        pace.begin()
        told = pace.told()
        assert told is not None
        assert told.sent == (3 * sent + 8) // 2


def test_all_are_told_of_or_none() -> None:
    one = Told(0.5, 64, 0.02, 1000, 1 << 30)
    assert processes(3, []) is processes(3, [one, None]) is None
    said = processes(3, [one, one._replace(seconds=0.8, exchange=0.01)])
    assert said is not None
    assert (said.seconds, said.tokens, said.memory) == ((0.5, 0.8), (64, 64), (1 << 30, 1 << 30))
    assert said.exchange == 0.01  # of who came last
    assert said.link == 1000 / 0.81


def test_a_gauge_says_it_behind_the_device() -> None:
    told: list[events.Event] = []
    together: Any = SimpleNamespace(told=[Told(0.5, 64, 0.02, 1000, 1)] * 2)
    with Gauge(told.append, torch.nn.Linear(2, 2), CPU, together) as emit:
        emit(events.Step(step=3, loss=1.0))
        emit(events.Step(step=4, loss=1.0))
    assert [event.type for event in told] == ["step", "device", "processes", "step"]
