"""Runs whose weights are updated in backward: the same as any other, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nbtune import events
from nbtune.spec import RunSpec
from tests.support.every import every

FULL: dict[str, Any] = {
    "adapter": "full",
    "device": "cpu",
    "steps": 5,
    "learning_rate": 1e-4,
    "checkpoint": {"every": 3},
}
TURNED = {"optim_args": {"in_backward": True}}


def weights(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "adapter" / "model.safetensors")


def same(one: Any, other: Any) -> bool:
    mine, its = weights(one), weights(other)
    assert mine.keys() == its.keys()
    return all(torch.equal(mine[name], its[name]) for name in mine)


def test_in_fp32_and_without_clipping_it_is_the_run_that_keeps_gradients(start):
    """Also where parts of the model have rates of their own."""
    more = {**FULL, "dtype": "fp32", "max_grad_norm": 0, "weight_decay": 0.1}
    rates = {"embedding_rate": 3e-5}
    kept = start("kept", **more, optim_args=rates).wait()
    turned = start("turned", **more, optim="adamw", optim_args={**rates, "in_backward": True}).wait()
    assert turned.plan.in_backward
    assert not kept.plan.in_backward
    assert turned.history["loss"].tolist() == kept.history["loss"].tolist()
    assert turned.history["grad_norm"].tolist() == pytest.approx(kept.history["grad_norm"].tolist(), rel=1e-5)
    assert same(turned, kept)


def test_the_first_step_which_is_measured_before_tells_its_loss_once(start):
    more = {**FULL, "dtype": "fp32", "steps": 1, "max_grad_norm": 0.5, "checkpoint": {}}
    kept, turned = start("kept", **more).wait(), start("turned", **more, **TURNED).wait()
    assert turned.history["loss"].tolist() == kept.history["loss"].tolist()
    assert turned.history["grad_norm"].tolist() == pytest.approx(kept.history["grad_norm"].tolist(), rel=1e-5)
    mine, its = weights(turned), weights(kept)
    assert every(torch.allclose(mine[name], its[name], rtol=1e-5, atol=1e-7) for name in its)


def test_a_stopped_run_goes_on_exactly_with_eight_bit_states_and_drawn_rounding(start, until):
    more = {**FULL, "dtype": "bf16", "optim": "adamw_8bit", **TURNED}
    whole = start("whole", **more).wait()
    run = start("part", **more)
    until(run, lambda event: isinstance(event, events.Step) and event.step >= 2)
    run.pause()
    until(run, lambda event: isinstance(event, events.State) and event.state == "paused")
    run.stop(wait=True)
    assert run.state == "stopped"
    assert 2 <= run.step < 5
    run.resume().wait()
    assert run.state == "finished"
    assert run.history["loss"].tolist() == whole.history["loss"].tolist()
    assert same(run, whole)
    assert {value.dtype for value in weights(run).values()} == {torch.bfloat16}
    other = start("other", **more, seed=43).wait()
    assert not same(other, whole)


@pytest.mark.slow
def test_bf16_learns_what_fp32_copies_learn(start):
    more = {**FULL, "steps": 24, "dtype": "bf16"}
    kept, turned = start("kept", **more).wait(), start("turned", **more, **TURNED).wait()
    assert turned.history["loss"].iloc[-1] == pytest.approx(kept.history["loss"].iloc[-1], rel=0.05)


def test_the_key_is_written_back_and_says_nothing_where_it_is_left_out():
    assert RunSpec(data="rows").optim_args.in_backward == "auto"
