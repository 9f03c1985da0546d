"""Experts whose weights wait in the host's memory: the losses and gradients of experts that stay, bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from nbtune.device import DeviceFacts
from nbtune.models.accelerate import apply
from nbtune.models.experts.rounded import rounded_in
from nbtune.models.experts.stacks import round_stacks, stacks_of
from nbtune.models.memory_estimate import MEMORY_POLICIES
from nbtune.models.memory_search import Setup, fit
from nbtune.spec import AdapterSpec
from nbtune.spec.placement import Home, Placement
from tests.models.experts.test_block import adapted, off, said
from tests.planner.test_planner import GIB, LLAMA_8B
from tests.support.every import every
from tests.support.model_classes import CLASSES

LAYERS = 5
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mixtral", "qwen3_moe"):
        options = {**CLASSES[name].options, "num_hidden_layers": LAYERS}
        monkeypatch.setitem(CLASSES, name, dataclasses.replace(CLASSES[name], options=options))


def two(name: str, form: str, resident: int) -> tuple[Any, Any, Any]:
    """A model whose experts stay, one of the same numbers whose experts travel, and the second's patch."""
    stays, travels = adapted(name), adapted(name)
    if form == "nf4":
        round_stacks(stays, form), round_stacks(travels, form)
    apply(stays)
    return stays, travels, apply(travels, weights=Placement(format=form, resident=resident), device=CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["32bit", "nf4"])
@pytest.mark.parametrize(("name", "resident"), [("mixtral", 0), ("qwen3_moe", 2)])
def test_experts_that_travel_compute_what_those_that_stay_do(name: str, form: str, resident: int) -> None:
    stays, travels, patch = two(name, form, resident)
    wanted = said(stays)
    away = [
        m for place, m, key, _ in stacks_of(travels) for s in [rounded_in(m).get(key)] if s is not None and s.traffic
    ]
    assert len(away) == 2 * (LAYERS - resident)
    assert sum("streamed" in what for what in patch.report.taken.values()) == LAYERS - resident
    for policy in MEMORY_POLICIES:
        patch.set_policy(policy)  # type: ignore[arg-type]
        for _ in range(2):  # what comes next is known from the second step on
            assert every(torch.equal(a, b) for a, b in zip(said(travels), wanted, strict=True)), policy


def test_a_stack_travels_once_for_each_pass() -> None:
    _, travels, patch = two("mixtral", "32bit", 0)
    for _ in range(3):
        said(travels)
    before = patch.traffic.sent
    said(travels)
    # q k v, attention's output and two stacks a layer, forth and back; the two layers at either turn are still there
    assert patch.traffic.sent - before == 4 * (2 * LAYERS - 4)


def test_stock_experts_find_their_weights_and_nobody_else_does() -> None:
    stays, travels, patch = two("mixtral", "32bit", 0)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        for model in (stays, travels):
            model.eval()
        with stays.disable_adapter(), travels.disable_adapter():
            bare = [model(input_ids=ids, use_cache=False).logits for model in (stays, travels)]
    assert torch.equal(*bare)
    assert every(p.isnan().all() for _, _, _, p in stacks_of(travels))  # a stand-in that goes wrong loudly
    wanted = said(stays.train())
    patch.remove()
    assert off(said(travels.train()), wanted) <= 1e-5


@pytest.mark.parametrize(("home", "gib"), [(None, 40), (Home.STREAMED, 40), (None, 100)])
def test_a_plan_lets_experts_travel_that_do_not_fit(home: Any, gib: int) -> None:
    """Of the shape of Qwen3-30B-A3B: 57 GB of experts in 48 layers."""
    model = dataclasses.replace(
        LLAMA_8B, num_layers=48, hidden_size=2048, intermediate_size=6144, parameters=30_500_000_000,
        linear=48 * 19_000_000, stacked=29_000_000_000, experts_used=8 / 128, trained=30_000_000,
    )  # fmt: skip
    card = DeviceFacts("cuda", "card", gib * GIB, gib * GIB, (9, 0), True, ram=256 * GIB)
    setup = Setup(model, AdapterSpec(r=16), card, Placement(), "bf16", 2048)
    best, _ = fit(setup, [4], home=home)
    assert best is not None
    assert best.weights.streams is (gib == 40)
    assert best.memory.total <= gib * GIB
    if home is Home.STREAMED:
        assert best.weights.resident == 0
        assert best.memory.weights < 6 * GIB  # two layers' at a time
    elif gib == 40:
        assert 0 < (best.weights.resident or 0) < 48
    small, _ = fit(dataclasses.replace(setup, device=dataclasses.replace(card, ram=32 * GIB)), [4], home=home)
    assert small is None or gib == 100  # the host has no room for them
