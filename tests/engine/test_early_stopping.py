"""A run whose held-out loss no longer falls ends, and ends with its best weights where that was asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import nbtune
from nbtune import events
from nbtune.errors import PlanError
from nbtune.train.early_stopping import EarlyStopping
from nbtune.train.progress import Progress
from tests.engine.conftest import ROWS
from tests.engine.test_asked import STILL, Start, trained


def test_it_ends_when_nothing_is_gained_and_so_does_one_that_was_resumed(start: Start) -> None:
    """At a rate of nearly nothing the first evaluation sets the mark, and two more do not fall below it."""
    watched = {"split": 0.2, "every": 1, "patience": 2, "threshold": 0.01}
    run = start(eval=watched, learning_rate=STILL, checkpoint={"every": 1, "keep": 9}).wait()
    assert (run.state, run.step) == ("finished", 3)
    assert any("stopped early, at step 3 of 8" in e.message for e in run.events() if isinstance(e, events.Warning))
    assert run.resume(step=2).wait().step == 3


@pytest.mark.parametrize("patience", [None, 1])
def test_it_ends_with_the_best_weights(start: Start, patience: int | None) -> None:
    """Also one that ends early, at a step of which a checkpoint is there already."""
    fields = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "checkpoint": {"every": 1, "keep": 9}, "steps": 6}
    watched = {"split": 0.2, "every": 1, "load_best": True, "patience": patience}
    run = start(eval=watched, order="given", **fields).wait()
    evals = [event for event in run.events() if isinstance(event, events.Eval)]
    best = min(evals, key=lambda event: event.loss).step
    assert best < run.step, "at such a rate it gets worse"
    assert (run.step < 6) is (patience is not None)
    saved = load_file(run.folder / f"checkpoints/step-{best:08d}/trainable.safetensors")
    expected = torch.cat([saved[name].flatten() for name in sorted(saved)]).double()
    assert torch.equal(trained(run), expected)  # what is resumed, asked and exported from


def test_nothing_held_out_is_refused_by_the_plan() -> None:
    for wish in ({"patience": 2}, {"load_best": True}):
        with pytest.raises(PlanError, match="no rows are held out"):
            nbtune.plan(data=ROWS, eval={"split": 0, **wish}, steps=2, device="cpu")


def test_a_fall_too_small_to_wait_for_is_the_best_all_the_same() -> None:
    """`threshold` is of patience: the weights that a run ends with are those of the lowest loss."""
    kept: list[int] = []
    keeper = SimpleNamespace(keep=kept.append, put_back=lambda step: True)
    rules, progress = EarlyStopping(patience=2, threshold=0.1, best=keeper), Progress()
    seen = []
    for step, loss in enumerate((1.0, 0.95, 0.97, 0.85, 0.84, 0.83), 1):
        progress.step = step
        seen.append((rules.remember(progress, loss), progress.stale, rules.in_vain(progress)))
    assert [best for best, *_ in seen] == [True, True, False, True, True, True]
    assert [stale for _, stale, _ in seen] == [0, 1, 2, 0, 1, 2]
    assert [vain for *_, vain in seen] == [False, False, True, False, False, True]
    assert kept == [1, 2, 4, 5, 6]
    assert (progress.best_step, progress.best_eval, progress.fell_to) == (6, 0.83, 0.85)
    assert list(rules.end(progress, 6)) == []  # it ends with the best one anyway
