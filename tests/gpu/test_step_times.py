"""Seconds of steps that are not recorded: a host that launches them one by one is behind the device, or ahead of it."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

import nbtune
from nbtune import events

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EVERY, STEPS = 3, 90
CASES: dict[str, dict[str, Any]] = {
    "dpo": {"data": "nbtune/preferences", "method": "dpo"},
    "sft": {"data": "nbtune/persona", "accelerate": False},
    "recorded": {"data": "nbtune/persona"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_steps_seconds_are_those_that_pass(name: str, tmp_path: Path) -> None:
    fields = {"model": "nbtune/tiny", "batch_size": 16, "steps": STEPS, "eval": {"split": 0.2, "every": EVERY}}
    run = nbtune.finetune({**fields, **CASES[name]}, name=name, runs_dir=tmp_path, device="cuda").wait()
    assert run.state == "finished", run.error
    said = run.events()
    steps = [event for event in said if isinstance(event, events.Step)]
    evaluations = [event for event in said if isinstance(event, events.Eval)]
    running = next(event for event in said if isinstance(event, events.State) and event.state == "running")
    passed = steps[-1].time - running.time - sum(event.seconds for event in evaluations[:-1])
    assert len(steps) == STEPS
    assert sum(step.seconds for step in steps) == pytest.approx(passed, rel=0.05)

    later = steps[3 * EVERY :]  # kernels are made before
    after = [median(step.seconds for step in later if step.step % EVERY == place) for place in range(EVERY)]
    assert max(after) < 1.6 * min(after), f"by their place between two evaluations: {after}"
