"""An MLP that some rows at a time go through: the losses and gradients of all rows at once."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


class Alive(TorchDispatchMode):
    """Notes how many tensors of a shape were there at once."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.now, self.most = shape, 0, 0

    def _gone(self) -> None:
        self.now -= 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        empty = function in (torch.ops.aten.empty.memory_format, torch.ops.aten.new_empty.default)
        if empty and tuple(made.shape) == self.shape:
            self.now += 1
            self.most = max(self.most, self.now)
            weakref.finalize(made.untyped_storage(), self._gone)
        return made


def test_one_part_is_gone_before_the_next() -> None:
    """Else its scratch would be as tall as two parts', which the plan does not count."""
    model = make("llama")
    patch = apply(model, "recompute")
    group = patch.layers[0].gate_up
    with Alive((8, group.width_out)) as alive:
        loss_and_gradients(model, batch())
    assert alive.most == 1
