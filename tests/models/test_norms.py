"""Norms of decoder layers as the blocks use them: before and behind a sum, and what their weights learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nbtune.models.accelerate import apply
from nbtune.models.accelerate.norms import find_norm
from tests.models.test_accelerate import make


def test_a_block_whose_weights_learn_otherwise_is_left_alone() -> None:
    """Its output is ours, and its input's gradient: only a gradient of its own tells."""
    model = make("llama", adapter=None)
    norm = model.model.layers[0].input_layernorm

    class Twice(type(norm)):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            plain = super().forward(hidden_states)
            return plain + (plain / self.weight).detach() * (self.weight - self.weight.detach())

    norm.__class__ = Twice
    report = apply(model).report
    assert "the probe disagrees: gradient" in report.left["layers.0"]
    assert "layers.1" not in report.left, report.lines()


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("kind", [torch.nn.RMSNorm, torch.nn.LayerNorm])
def test_norms_before_and_behind_a_sum(kind: Any, scale: float) -> None:
    torch.manual_seed(0)
    module, x, residual = kind(24, eps=1e-5), torch.randn(7, 24), torch.randn(7, 24)
    torch.nn.init.normal_(module.weight)
    norm = find_norm(module, 24)
    with torch.no_grad():
        wanted = residual + scale * x
        h, stats = norm.of_sum(x.clone(), residual, scale, made := torch.empty_like(x))
        assert torch.allclose(h, wanted, atol=1e-6)
        assert torch.allclose(made, module(wanted), atol=1e-5)
        assert torch.allclose(norm.again(h, stats), made, atol=1e-6)
        behind, _ = norm.onto(x.clone(), residual, scale)
        assert torch.allclose(behind, residual + scale * module(x), atol=1e-5)
