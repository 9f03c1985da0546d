"""Experts as products by groups: what stock transformers and peft compute, put onto instances and taken off again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nbtune.models.accelerate import apply
from nbtune.models.adapters import add_adapter
from nbtune.models.experts.find import experts_in
from nbtune.spec import AdapterSpec
from tests.models.experts.test_stacks import MIXTURES
from tests.support.every import every
from tests.support.model_classes import make

TAKEN = tuple(name for name in MIXTURES if name not in ("llama4_text", "jetmoe"))  # whose experts are called otherwise
SAMPLE = ("mixtral", "gpt_oss")


def adapted(name: str, **options: Any) -> Any:
    """A model of the table with a LoRA whose B is no zero."""
    model: Any = add_adapter(make(name), AdapterSpec(**{"r": 3, "alpha": 5, **options}), seed=0).train()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for at, p in model.named_parameters():
            if "lora_B" in at:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


def said(model: Any) -> list[Tensor]:
    """The loss of some tokens, and the gradients of what is trained."""
    ids = torch.randint(3, 90, (2, 13), generator=torch.Generator().manual_seed(1))
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    trained = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, trained)]


def off(ours: list[Tensor], stock: list[Tensor]) -> float:
    least = 0.01 * max(float(g.norm()) for g in stock[1:])
    pairs = zip(ours, stock, strict=True)
    return max(float((is_ - true).norm()) / max(float(true.norm()), least) for is_, true in pairs)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in TAKEN])
def test_experts_by_groups_compute_what_stock_does_and_come_off_again(name: str) -> None:
    model = adapted(name)
    stock = said(model)
    patch = apply(model)
    experts = {at: what for at, what in patch.report.taken.items() if at.startswith("experts")}
    assert experts, patch.report.left
    assert every("LoRA of rank 3" in what for what in experts.values())
    ours = said(model)
    assert off(ours, stock) <= 1e-5
    patch.remove()
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert every(torch.equal(a, b) for a, b in zip(said(model), stock, strict=True))


@pytest.mark.parametrize("wanted", [("q_proj",), ("experts.down_proj",), ("gate_up_proj",)])
def test_a_lora_on_one_stack_or_on_none(wanted: tuple[str, ...]) -> None:
    model = adapted("qwen3_moe", target_modules=wanted, use_rslora=True)
    stock = said(model)
    assert any(at.startswith("experts") for at in apply(model).report.taken)
    assert off(said(model), stock) <= 1e-5


def test_where_the_adapter_is_switched_off_stock_experts_answer() -> None:
    model = adapted("mixtral")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), model.disable_adapter():
        bare = model(input_ids=ids, use_cache=False).logits
    apply(model)
    with torch.no_grad(), model.disable_adapter():
        again = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(again, bare, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids, use_cache=False).logits, bare, atol=1e-2)


def test_experts_that_compute_something_else_are_left_alone_and_that_is_said() -> None:
    model = adapted("qwen3_moe")
    layer = model.base_model.model.model.layers[0]
    outer = next(module for _, module, _ in experts_in(layer))
    own = outer.forward
    outer.forward = lambda *args, **named: 1.1 * own(*args, **named)
    stock = said(model)
    patch = apply(model)
    assert "disagrees" in patch.report.left["experts.0"]
    assert "experts.1" in patch.report.taken
    assert off(said(model), stock) <= 1e-5


def test_experts_whose_own_weights_are_trained_are_left_alone() -> None:
    model = make("qwen3_moe")
    assert "own weights are trained" in apply(model).report.left["experts.0"]


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 9), chosen=st.integers(1, 4), seed=st.integers(0, 99), one=st.booleans())
def test_any_choice_of_experts_gives_what_stock_gives(tokens: int, chosen: int, seed: int, one: bool) -> None:
    """Also where all tokens go to the same experts, and others get none."""
    model = adapted("gpt_oss")
    _, outer, block = next(experts_in(model.base_model.model.model.layers[0]))
    assert not isinstance(block, str)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(1 if one else tokens, 4, generator=generator).expand(tokens, 4)
    weights, index = scores.topk(chosen)
    x = torch.randn(tokens, 32, generator=generator)
    runs = []
    for run in (outer, block):
        of = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        out = run(of[0], index, of[1])
        runs.append([out.detach(), *torch.autograd.grad(out.square().sum(), [*of, *block.parameters()])])
    assert off(runs[1], runs[0]) <= 1e-5
