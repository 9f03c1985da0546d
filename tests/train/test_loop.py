"""The loop's own clock, on a device that works while the host runs ahead."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nbtune import events
from nbtune.train import loop
from tests.support.control import MemoryControl

STEP = 0.05  # seconds that the device is at work on each


class SlowDevice:
    """Steps that are given to it at once and are done one after another, as a GPU does."""

    device, scaled = torch.device("mps"), False  # by name only: what is asked of it is asked of the host

    def __init__(self) -> None:
        self.free_at = 0.0

    def look_ahead(self, batches: Any, *, step: int) -> None:
        pass

    def accumulate(self, batch: Any, **_: Any) -> None:
        self.free_at = max(self.free_at, time.perf_counter()) + STEP

    def update(self, learning_rate: float) -> tuple[Any, Any]:
        return self, self

    def discard(self) -> None:
        pass


class Later:
    """As `nbtune.device.Later`, of a `SlowDevice`."""

    def __init__(self, device: SlowDevice, _: Any) -> None:
        self.at = device.free_at

    def read(self) -> list[float]:
        time.sleep(max(0.0, self.at - time.perf_counter()))
        return [1.0, 1.0]


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_step_lasts_as_long_as_the_device_is_at_it_also_beside_evaluations(monkeypatch, every):
    monkeypatch.setattr(loop, "Later", Later)
    batch = SimpleNamespace(num_tokens=10, num_trained=10, weight=10.0)
    batches = SimpleNamespace(steps_per_epoch=4.0, step=lambda _: [batch])
    said: list[events.Event] = []
    options = loop.LoopOptions(7, 1e-3, lambda _: 1.0, every, None, 1e9)
    jobs = loop.Jobs(
        save=lambda progress: events.Checkpoint(step=progress.step, folder=""),
        evaluate=lambda look: (time.sleep(3 * STEP), (1.0, 10, 1.0))[1],
        sample=lambda *_: (),
        between=lambda *_: None,
    )
    control = MemoryControl()
    progress = loop.Progress()
    assert loop.train(SlowDevice(), batches, options, jobs, progress=progress, emit=said.append, control=control)
    seconds = [e.seconds for e in said if isinstance(e, events.Step)]
    assert len(seconds) == 7
    assert min(seconds) > 0.9 * STEP
    assert sorted(seconds)[3] < 2.5 * STEP  # an evaluation is no part of one
