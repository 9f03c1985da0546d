"""fp16 with a loss scale, as on cards without bf16, learns what bf16 does; what such cards lack is not asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend
from transformers import LlamaConfig, LlamaForCausalLM

from nbtune.data.batching.collate import collate
from nbtune.data.prepare.dataset import Builder
from nbtune.models.accelerate import apply, attention
from nbtune.models.adapters import add_adapter
from nbtune.spec import AdapterSpec
from nbtune.train.loss import TokenLoss
from nbtune.train.stepper import Stepper

CPU, STEPS, ROWS, LENGTH, WORDS = torch.device("cpu"), 300, 4, 32, 120


def batches() -> list[Any]:
    """A chain of words that can be learnt: each is followed by one of two."""
    chance = np.random.default_rng(4)
    following, builder = chance.integers(3, WORDS, (WORDS, 2)), Builder(["chain"])
    for number in range(STEPS * ROWS):
        words = [int(chance.integers(3, WORDS))]
        while len(words) < LENGTH:
            words.append(int(following[words[-1], int(chance.random() < 0.2)]))
        builder.add(np.array(words, np.int32), np.ones(LENGTH, bool), 0, number)
    data = builder.build()
    return [collate(data, list(range(i * ROWS, (i + 1) * ROWS))) for i in range(STEPS)]


def losses(dtype: torch.dtype) -> tuple[torch.Tensor, Stepper]:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=WORDS, max_position_embeddings=64,
    )  # fmt: skip
    model = add_adapter(LlamaForCausalLM(config).to(dtype), AdapterSpec(r=8), seed=1)
    assert not apply(model).report.left
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1.0)
    scaled, loss = dtype == torch.float16, TokenLoss(fused=True)
    stepper = Stepper(model, loss, optimizer, max_grad_norm=1.0, seed=1, device=CPU, scaled=scaled)
    found = []
    for step, batch in enumerate(batches()):
        stepper.accumulate(batch, denominator=batch.num_trained, step=step, micro_step=0)
        found.append(stepper.update(3e-3)[0])
    return torch.stack(found).float(), stepper


@pytest.mark.slow
def test_fp16_learns_what_bf16_learns() -> None:
    half, stepper = losses(torch.float16)
    brain, _ = losses(torch.bfloat16)
    assert torch.isfinite(half).all()
    assert stepper.scaler.get_scale() >= 1.0
    end = brain[-20:].mean()
    assert end < 0.85 * brain[0]
    assert abs(half[-20:].mean() - end) < 0.01 * end


@pytest.mark.parametrize(
    ("capability", "dim", "best"),
    [
        ((7, 5), 64, [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]),
        ((8, 6), 128, [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]),
        ((9, 0), 128, [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]),
        ((9, 0), 256, [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]),
        ((12, 0), 64, [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]),
    ],
)
def test_attention_by_card_and_size_of_heads(
    capability: tuple[int, int], dim: int, best: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_capability", lambda _: capability)
    attention._order.cache_clear()
    try:
        found = attention._order(0, dim)
    finally:
        attention._order.cache_clear()
    assert found[: len(best)] == best
    assert found[-1] == SDPBackend.MATH
    assert capability >= (8, 0) or SDPBackend.FLASH_ATTENTION not in found
