"""An MLP that some rows at a time go through: the losses and gradients of all rows at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nbtune.models.accelerate import apply, mlp_by_rows
from nbtune.models.cuda_graph_step import TrainStep
from nbtune.spec import AdapterSpec, Placement
from tests.models.test_accelerate import assert_equal, batch, loss_and_gradients, make


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp_by_rows, "MLP_ROWS", 8)  # of 2 × 13


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "gpt_neox"])
def test_losses_and_gradients(family: str, kind: str) -> None:
    adapter = AdapterSpec(r=4) if kind == "lora" else AdapterSpec(type="full")
    stock, ours = make(family, adapter), make(family, adapter)
    patch = apply(ours, "recompute")
    assert patch.layers, patch.report.lines()
    assert_equal(loss_and_gradients(ours, batch()), loss_and_gradients(stock, batch()), 2e-5)


@pytest.mark.parametrize("weights", [Placement(), Placement(resident=0)], ids=["here", "away"])
def test_gradients_in_place(weights: Any) -> None:
    """Two micro-batches summed up by `TrainStep`, whose sinks take gradients as they are made."""
    parts = [batch(seed=s) for s in (5, 6)]
    norms = []
    for rows, placed in ((8, weights), (10**6, Placement())):
        mlp_by_rows.MLP_ROWS = rows  # set back by the fixture
        model = make("llama")
        step = TrainStep(model, apply(model, "offload", weights=placed, device=torch.device("cpu")), max_grad_norm=1.0)
        for i, part in enumerate(parts):
            step.accumulate(part, first=i == 0)
        norms.append(torch.cat([g.flatten() for g in step.gradients()]).clone())
    torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-6)
