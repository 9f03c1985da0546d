"""Weights that travel in 12 bits: the same losses, gradients and words as those that stay, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nbtune.models.accelerate import apply
from nbtune.models.accelerate.cpu_offload import StreamedGroup
from nbtune.models.accelerate.packed_linear import PackedGroup
from nbtune.models.memory_estimate import MEMORY_POLICIES
from nbtune.spec import Placement
from tests.models.test_accelerate import SIZES, assert_equal, batch, loss_and_gradients, make
from tests.support.every import every, some

LAYERS = 5
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "num_hidden_layers", LAYERS)


def bf16(family: str) -> Any:
    return make(family, dtype=torch.bfloat16)


def packed(family: str, policy: Any, resident: int = 0) -> tuple[Any, Any, list[PackedGroup]]:
    model = bf16(family)
    patch = apply(model, policy, weights=Placement(resident=resident), device=CPU)
    return model, patch, [g for layer in patch.layers for g in layer.groups() if isinstance(g, PackedGroup)]


FAMILIES = [("qwen2", 0), ("llama", 2), ("phi3", 0)]
OFTEN = {("qwen2", "keep"), ("llama", "selective"), ("phi3", "recompute"), ("qwen2", "offload")}


@pytest.mark.parametrize(
    ("family", "resident", "policy"),
    [
        pytest.param(family, resident, policy, marks=[] if (family, policy) in OFTEN else pytest.mark.slow)
        for family, resident in FAMILIES
        for policy in MEMORY_POLICIES
    ],
)
def test_the_same_step_after_step(family: str, resident: int, policy: Any) -> None:
    stays = bf16(family)
    apply(stays, policy)
    model, _, groups = packed(family, policy, resident)
    assert len(groups) == 4 * (LAYERS - resident)
    for seed, length in ((5, 13), (6, 9), (7, 11)):  # what comes next is known from the second step on
        b = batch(seed=seed, length=length)
        assert_equal(loss_and_gradients(model, b), loss_and_gradients(stays, b), 0)


def test_it_travels_once_for_each_pass_and_in_fewer_bytes() -> None:
    model, patch, groups = packed("llama", "recompute")
    for _ in range(3):
        loss_and_gradients(model, batch())
    before = patch.traffic.sent
    loss_and_gradients(model, batch())
    # four matrices a layer, forth and back; what is unpacked still of the last layer, and has come of the one before
    assert patch.traffic.sent - before <= 4 * (2 * LAYERS - 3)
    for group in some(groups):
        assert group.host.numel() < 0.76 * 2 * group.outputs * group.inputs


def test_words_between_steps_and_the_weights_given_back() -> None:
    ids, stock, before = batch()["input_ids"], bf16("llama"), bf16("llama").state_dict()
    model, patch, _ = packed("llama", "recompute", 1)
    loss_and_gradients(model, batch())
    with torch.no_grad():
        said = [m.eval().generate(ids, max_new_tokens=5, do_sample=False) for m in (model, stock)]
    assert torch.equal(*said)
    stays = bf16("llama")
    apply(stays, "recompute")
    assert_equal(loss_and_gradients(model.train(), batch(seed=8)), loss_and_gradients(stays, batch(seed=8)), 0)
    patch.remove()
    after = model.state_dict()
    assert every(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_step_that_was_broken_off() -> None:
    model, patch, _ = packed("llama", "recompute")
    wanted = loss_and_gradients(model, batch())
    patch.reset("recompute")
    assert_equal(loss_and_gradients(model, batch()), wanted, 0)


def test_weights_of_many_sizes_travel_as_they_are() -> None:
    model = bf16("llama")
    with torch.no_grad():
        down = model.get_decoder().layers[1].mlp.down_proj.base_layer.weight
        down.mul_(torch.exp2(torch.linspace(-30, 10, down.numel()).view(down.shape)).to(down.dtype))
    wanted = loss_and_gradients(bf16_like(model), batch())
    patch = apply(model, weights=Placement(resident=0), device=CPU)
    kinds = [type(g) for layer in patch.layers for g in layer.groups()]
    assert kinds.count(StreamedGroup) == 1
    assert kinds.count(PackedGroup) == 4 * LAYERS - 1
    assert_equal(loss_and_gradients(model, batch()), wanted, 0)


def bf16_like(model: Any) -> Any:
    """Return a model with the same weights, accelerated, whose weights stay."""
    other = bf16("llama")
    other.load_state_dict(model.state_dict())
    apply(other)
    return other
