"""Packed and unpacked losses and gradients are equal, on tiny models of many families and on every attention path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nbtune.data.batching.collate import Batch
from nbtune.data.batching.sampler import BatchPlan
from nbtune.data.prepare.dataset import Builder, Dataset
from nbtune.train.inputs import model_inputs

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None, "head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16},
    "phi3": {},
    "olmo2": {},
}


def model_of(family: str, attention: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family])
    own = attention == "own"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if own else attention)
    model = model.float().train()
    if own:
        from nbtune.models.accelerate import apply

        apply(model)
    return model


def random_data(rng: np.random.Generator) -> Dataset:
    builder = Builder(["s"])
    for row in range(int(rng.integers(3, 12))):
        length = int(rng.integers(2, 48))
        ids = rng.integers(3, 128, length).astype(np.int32)
        trained = rng.random(length) < 0.6
        trained[-1] = True
        builder.add(ids, trained, 0, row)
    return builder.build()


def loss_and_gradients(model: Any, batch: Batch) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model(**model_inputs(batch, torch.device("cpu")), num_items_in_batch=batch.num_trained, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def check(family: str, attention: str, batches: int) -> None:
    model, rng = model_of(family, attention), np.random.default_rng(1)
    done = 0
    while done < batches:
        plan = BatchPlan(random_data(rng), micro_batch_size=2, seed=done, packing=True, sequence_len=64)
        for k in range(min(plan.steps_per_epoch, batches - done)):
            (packed,) = plan.step(k)
            apart = packed.unpacked()
            assert apart.cu_seqlens is None
            assert apart.num_trained == packed.num_trained
            loss, gradients = loss_and_gradients(model, packed)
            expected, expected_gradients = loss_and_gradients(model, apart)
            assert loss == pytest.approx(expected, abs=1e-5)
            for ours, theirs in zip(gradients, expected_gradients, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
            done += 1


# Gemma 2 caps its attention logits: transformers has no sdpa for it.
PATHS = [(f, a) for f in FAMILIES for a in ("sdpa", "eager", "own") if (f, a) != ("gemma2", "sdpa")]


@pytest.mark.parametrize(("family", "attention"), PATHS)
def test_packed_equals_unpacked(family: str, attention: str) -> None:
    check(family, attention, batches=3)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "attention"), PATHS)
def test_packed_equals_unpacked_on_50_batches(family: str, attention: str) -> None:
    check(family, attention, batches=50)
