"""What a batch looks like to the model: few shapes, no mask where none is needed, and the same losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nbtune.data.batching.collate import collate, pack
from nbtune.data.prepare.dataset import Builder
from nbtune.models.accelerate import apply
from nbtune.train.inputs import model_inputs
from nbtune.train.loss import TokenLoss
from tests.models.test_accelerate import make

CPU = torch.device("cpu")
LENGTHS = (5, 9, 30, 12)


@pytest.fixture(scope="module")
def dataset():
    builder, chance = Builder(["rows"]), np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        builder.add(chance.integers(3, 256, length), np.arange(length) >= 2, 0, number)
    return builder.build()


def test_padding_on_the_right_needs_no_mask(dataset):
    batch = collate(dataset, [0, 1, 2])
    assert batch.attention_mask is not None
    assert "attention_mask" in model_inputs(batch, CPU)
    assert "attention_mask" not in model_inputs(batch, CPU, fused=True)
    model = make("llama")
    stock = TokenLoss()(model, batch, denominator=batch.num_trained, device=CPU).loss.item()
    apply(model)
    ours = TokenLoss(fused=True)(model, batch, denominator=batch.num_trained, device=CPU).loss.item()
    assert ours == pytest.approx(stock, rel=1e-5)


def test_packs_of_other_documents_have_one_shape(dataset):
    packs = [pack(dataset, [[0, 1], [2, 3]], 64), pack(dataset, [[2], [3, 0]], 64)]
    assert len(packs[0].cu_seqlens) != len(packs[1].cu_seqlens)
    shapes = [
        {k: tuple(v.shape) if hasattr(v, "shape") else v for k, v in model_inputs(b, CPU, fused=True).items()}
        for b in packs
    ]
    assert shapes[0] == shapes[1]
    model = make("llama")
    stock = [TokenLoss()(model, b, denominator=b.num_trained, device=CPU).loss.item() for b in packs]
    apply(model)
    ours = [TokenLoss(fused=True)(model, b, denominator=b.num_trained, device=CPU).loss.item() for b in packs]
    assert ours == pytest.approx(stock, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("packs", "width"), [([[0, 1], [2, 3]], 64), ([[2], [3, 0]], 1100)])
def test_kernels_are_told_of_a_length_that_no_document_passes_and_that_there_is(dataset, packs, width, fused):
    batch = pack(dataset, packs, width)
    told = model_inputs(batch, CPU, fused=fused)
    longest = int((batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).max())
    assert longest <= told["max_length_q"] == told["max_length_k"] <= batch.input_ids.shape[1]
    assert told["cu_seq_lens_q"][-1] == batch.cu_seqlens[-1]
