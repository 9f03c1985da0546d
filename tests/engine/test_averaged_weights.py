"""A run that ends with an average of its weights: torch's own average of what a plain run had after each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import get_ema_multi_avg_fn

import nbtune
from nbtune.errors import SpecError
from tests.engine.conftest import ROWS
from tests.engine.test_asked import Start, trained

EVERY: dict[str, Any] = {"checkpoint": {"every": 1, "keep": 9}, "order": "given"}


@pytest.mark.parametrize("adapter", [{"type": "lora", "r": 4}, {"type": "full"}])
def test_it_ends_with_torchs_average_also_when_it_was_resumed(start: Start, adapter: dict[str, Any]) -> None:
    fields: dict[str, Any] = {**EVERY, "adapter": adapter, "steps": 5, "learning_rate": 5e-3}
    plain = start("plain", **fields).wait()
    saved = [load_file(plain.folder / f"checkpoints/step-{step:08d}/trainable.safetensors") for step in range(1, 6)]
    names = sorted(saved[0])
    mean = [saved[0][name].clone() for name in names]
    for weights in saved[1:]:
        get_ema_multi_avg_fn(0.7)(mean, [weights[name] for name in names], 1)
    expected = torch.cat([one.flatten() for one in mean]).double()
    run = start("averaged", **fields, optim_args={"ema_decay": 0.7})
    found = trained(run)
    assert float((found - expected).abs().max()) < 1e-6
    assert float((found - trained(plain)).abs().max()) > 1e-4
    assert torch.equal(trained(run.resume(step=3)), found)
    assert run.generate("Ahoy", max_new_tokens=2) is not None


def test_it_is_counted_and_does_not_go_with_the_best_weights() -> None:
    with_it, without = (
        nbtune.plan(data=ROWS, steps=2, device="cpu", optim_args=args) for args in ({"ema_decay": 0.9}, {})
    )
    assert with_it.memory.optimizer - without.memory.optimizer == 4 * without.trainable_parameters
    assert with_it.disk_bytes > without.disk_bytes
    with pytest.raises(SpecError, match="each say with what a run ends"):
        nbtune.plan(data=ROWS, steps=2, optim_args={"ema_decay": 0.9}, eval={"load_best": True})
