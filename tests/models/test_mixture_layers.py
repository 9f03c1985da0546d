"""Layers of mixtures: attention, norms and sums are ours, the MLP stays its own; equal to stock under each policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nbtune.models.accelerate import apply
from nbtune.models.adapters import add_adapter
from nbtune.models.memory_estimate import MEMORY_POLICIES
from nbtune.spec import AdapterSpec
from nbtune.spec.placement import Placement
from tests.models.experts.test_block import adapted, off, said
from tests.support.every import every
from tests.support.model_classes import make

WHOLE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe")
SAMPLE = ("mixtral", "granitemoe")  # with windows; with a multiplier of what halves add
CPU = torch.device("cpu")


def mixtures(patch: Any) -> list[str]:
    return [what for at, what in patch.report.taken.items() if at.startswith("layers")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in WHOLE])
def test_layers_of_mixtures_are_taken_whole_and_equal_stock(name: str) -> None:
    model = adapted(name)
    stock = said(model)
    patch = apply(model)
    assert len(mixtures(patch)) == 2, patch.report.left
    assert {"experts.0", "experts.1"} <= patch.report.taken.keys()
    for policy in MEMORY_POLICIES:
        patch.set_policy(policy)
        assert off(said(model), stock) <= 1e-5
    patch.remove()
    assert every(torch.equal(a, b) for a, b in zip(said(model), stock, strict=True))


def test_attention_streams_and_experts_stay_on_the_device() -> None:
    model = adapted("qwen3_moe")
    stock = said(model)
    patch = apply(model, "recompute", weights=Placement(resident=0), device=CPU)
    assert len(mixtures(patch)) == 2, patch.report.left
    assert patch.traffic is not None
    assert off(said(model), stock) <= 1e-5


def test_norms_and_weights_that_are_trained_get_their_gradients() -> None:
    """Full training: experts compute by themselves, attention and norms are ours."""
    model = make("mixtral").train()
    stock = said(model)
    patch = apply(model)
    assert len(mixtures(patch)) == 2, patch.report.left
    assert off(said(model), stock) <= 1e-5


def test_a_second_backward_is_refused_in_words() -> None:
    model = add_adapter(make("mixtral"), AdapterSpec(r=2), seed=0).train()
    apply(model)
    ids = torch.arange(3, 20)[None]
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward only"):
        loss.backward()


def test_a_step_that_waits_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernels multiply groups, where these end is waited for; noise on routers is other code's."""
    import nbtune.models.accelerate.patch as module

    model = adapted("mixtral")
    assert apply(make("llama")).waits is False
    patch = apply(model)
    assert patch.waits
    monkeypatch.setattr(module, "runs_grouped", lambda *_: True)
    assert not patch.waits
    model.base_model.model.model.layers[1].mlp.jitter_noise = 0.1
    assert patch.waits
