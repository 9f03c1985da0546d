"""A run whose held-out loss no longer falls ends, and ends with its best weights where that was asked for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import nbtune
from nbtune import events
from nbtune.errors import PlanError
from tests.engine.conftest import ROWS
from tests.engine.test_asked import STILL, Start, trained


def test_it_ends_when_nothing_is_gained_and_so_does_one_that_was_resumed(start: Start) -> None:
    """At a rate of nearly nothing the first evaluation sets the mark, and two more do not fall below it."""
    watched = {"split": 0.2, "every": 1, "patience": 2, "threshold": 0.01}
    run = start(eval=watched, learning_rate=STILL, checkpoint={"every": 1, "keep": 9}).wait()
    assert (run.state, run.step) == ("finished", 3)
    assert any("stopped early, at step 3 of 8" in e.message for e in run.events() if isinstance(e, events.Warning))
    assert run.resume(step=2).wait().step == 3


def test_it_ends_with_the_best_weights(start: Start) -> None:
    fields = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "checkpoint": {"every": 1, "keep": 9}, "steps": 6}
    watched = {"split": 0.2, "every": 1, "load_best": True}
    run = start(eval=watched, order="given", **fields).wait()
    evals = [event for event in run.events() if isinstance(event, events.Eval)]
    best = min(evals, key=lambda event: event.loss).step
    assert best < 6, "at such a rate it gets worse"
    saved = load_file(run.folder / f"checkpoints/step-{best:08d}/trainable.safetensors")
    expected = torch.cat([saved[name].flatten() for name in sorted(saved)]).double()
    assert torch.equal(trained(run), expected)  # what is resumed, asked and exported from


def test_nothing_held_out_is_refused_by_the_plan() -> None:
    for wish in ({"patience": 2}, {"load_best": True}):
        with pytest.raises(PlanError, match="no rows are held out"):
            nbtune.plan(data=ROWS, eval={"split": 0, **wish}, steps=2, device="cpu")
