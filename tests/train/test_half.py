"""fp16 with a loss scale, as on cards without bf16, learns what bf16 does; what such cards lack is not asked for."""

from __future__ import annotations

import copy
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
from nbtune.train.master_weights import Masters
from nbtune.train.stepper import Stepper

CPU, STEPS, ROWS, LENGTH, WORDS = torch.device("cpu"), 300, 4, 32, 120


def batches(steps: int = STEPS) -> list[Any]:
    """A chain of words that can be learnt: each is followed by one of two."""
    chance = np.random.default_rng(4)
    following, builder = chance.integers(3, WORDS, (WORDS, 2)), Builder(["chain"])
    for number in range(steps * ROWS):
        words = [int(chance.integers(3, WORDS))]
        while len(words) < LENGTH:
            words.append(int(following[words[-1], int(chance.random() < 0.2)]))
        builder.add(np.array(words, np.int32), np.ones(LENGTH, bool), 0, number)
    data = builder.build()
    return [collate(data, list(range(i * ROWS, (i + 1) * ROWS))) for i in range(steps)]


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


def small(dtype: torch.dtype, *, scaled: bool) -> Stepper:
    """A model of which all weights are trained, with copies in fp32 where it has 16 bits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=WORDS, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).train()
    trained = [*model.parameters()]
    masters = Masters(trained) if Masters.needed(trained) else None
    optimizer = torch.optim.SGD(trained if masters is None else masters.parameters, lr=1.0)
    how: dict[str, Any] = {"max_grad_norm": 0.1, "seed": 1, "device": CPU, "scaled": scaled, "masters": masters}
    return Stepper(model, TokenLoss(), optimizer, **how)


def trained_by(stepper: Stepper, steps: range) -> list[tuple[float, float]]:
    """The loss and the norm of some steps of two micro-batches."""
    given, told = batches(8), []
    for step in steps:
        for number, batch in enumerate(given[2 * step : 2 * step + 2]):
            stepper.accumulate(batch, denominator=2 * batch.num_trained, step=step, micro_step=number)
        loss, norm, _ = stepper.update(0.2)
        told.append((float(loss), float(norm)))
    return told


def test_a_loss_that_is_scaled_up_changes_neither_norms_nor_what_is_clipped() -> None:
    plain, scaled = small(torch.float32, scaled=False), small(torch.float32, scaled=True)
    told = [trained_by(stepper, range(3)) for stepper in (plain, scaled)]
    assert told[0] == [pytest.approx(step, rel=1e-5) for step in told[1]]
    assert told[0][0][1] > 0.2  # it is clipped
    for left, right in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_scale_and_copies_go_on_where_they_were_saved() -> None:
    whole, first, second = (small(torch.bfloat16, scaled=True) for _ in range(3))
    expected = trained_by(whole, range(4))
    trained_by(first, range(2))
    state = copy.deepcopy(first.state_dict())
    second.model.load_state_dict(first.model.state_dict())  # whose numbers are rounded
    second.load_state_dict(state)
    assert trained_by(second, range(2, 4)) == expected[2:]
    for left, right in zip(whole.state_dict()["masters"], second.state_dict()["masters"], strict=True):
        assert torch.equal(left, right)
    first.scaler.update(2.0**7)
    third = small(torch.bfloat16, scaled=True)
    third.load_state_dict(first.state_dict())
    assert third.scaler.get_scale() == 2.0**7 != small(torch.bfloat16, scaled=True).scaler.get_scale()


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
