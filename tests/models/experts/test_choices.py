"""What a step tells of a mixture's routers: counted beside the products, without what is asked without gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import nbtune
from nbtune import events
from nbtune.models.accelerate import apply
from nbtune.models.experts.choices import Choices
from tests.models.experts.test_block import adapted, said
from tests.support.tiny_models import save_mixture


def chosen(model: Any, experts: int) -> tuple[float, float]:
    """The same by counting what transformers' own routers choose."""
    found: list[Any] = []
    hooks = [
        layer.mlp.experts.register_forward_pre_hook(lambda _m, args: found.append(args[1]))
        for layer in model.base_model.model.model.layers
    ]
    said(model)
    for hook in hooks:
        hook.remove()
    counts = [index.flatten().bincount(minlength=experts).float() for index in found]
    busiest = max(float((one / one.sum()).max()) for one in counts)
    return busiest, float(torch.cat(counts).eq(0).float().mean())


@pytest.mark.parametrize("policy", ["keep", "selective", "recompute"])
def test_choices_are_counted_as_stock_routers_make_them(policy: Any) -> None:
    model = adapted("mixtral")
    stock = chosen(model, 4)
    patch = apply(model, policy)
    choices = Choices(patch.experts)
    assert torch.stack(list(choices.told().values())).isnan()[0]
    said(model)
    with torch.no_grad():
        model(input_ids=torch.arange(3, 60)[None], use_cache=False)  # an evaluation
    told = choices.told()
    assert (float(told["busiest_expert"]), float(told["idle_experts"])) == pytest.approx(stock)
    assert told["busiest_expert"] >= 1 / 4
    assert choices.told()["busiest_expert"].isnan()


def test_a_run_tells_them_at_each_step_and_of_dense_models_nothing(tmp_path: Path) -> None:
    base = save_mixture(tmp_path / "base")
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(4)]
    run = nbtune.finetune(
        model=str(base), data=rows, steps=2, batch_size=2, adapter={"r": 2}, runs_dir=tmp_path / "runs"
    ).wait()
    steps = [event for event in run.events() if isinstance(event, events.Step)]
    assert len(steps) == 2
    for step in steps:
        assert 1 / 4 <= step.metrics["busiest_expert"] <= 0.5  # a token chooses two different ones
        assert 0 <= step.metrics["idle_experts"] < 1


def test_a_loss_of_choices_is_told_apart_and_counts_once_however_a_step_is_divided(tmp_path: Path) -> None:
    """transformers adds it whole to each micro-batch's loss, so that it would count twice where there are two."""
    base, rows = save_mixture(tmp_path / "base"), [{"text": f"{n} and {n} and {n}."} for n in range(8)]
    config = json.loads((base / "config.json").read_text())

    def told(micro: int) -> tuple[events.Step, events.Eval]:
        how = {"steps": 1, "batch_size": 4, "adapter": {"r": 2}, "packing": False, "eval": {"split": 0.5}}
        run = nbtune.finetune(model=str(base), data=rows, micro_batch_size=micro, runs_dir=tmp_path, **how).wait()
        last = [[e for e in run.events() if isinstance(e, kind)][-1] for kind in (events.Step, events.Eval)]
        return last[0], last[1]  # type: ignore[return-value]

    plain, held_out = told(4)
    assert "aux_loss" not in plain.metrics
    (base / "config.json").write_text(json.dumps({**config, "output_router_logits": True, "router_aux_loss_coef": 0.5}))
    step, held = told(1)
    assert 1.9 < step.metrics["aux_loss"] < 4  # of two choices 2 would be even
    assert step.loss - 0.5 * step.metrics["aux_loss"] == pytest.approx(plain.loss, rel=1e-5)
    assert held.metrics["aux_loss"] > 1.9
    assert held.loss == pytest.approx(held_out.loss, rel=1e-3)  # without it: such losses can be compared
