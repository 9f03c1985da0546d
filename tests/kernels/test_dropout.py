"""Dropout: the published Philox, one mask for kernel and reference, and the gradient."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import dropout, dropout_mask
from nbtune_kernels.dropout import philox, reference


def test_philox_known_answer():
    # Random123's kat_vectors: philox4x32 7 rounds, counter 0, key 0
    words = philox(torch.tensor(0), torch.tensor([0]), 0)[:, 0].tolist()
    assert words == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


@pytest.mark.parametrize("p", [0.0, 2**-16, 0.05, 0.5, 0.99])
def test_kernel_and_mask_agree(draw, near, device, dtype, p):
    x, seed = draw(37, 101, dtype=dtype), torch.tensor(-123456789012345, device=device)
    mask = dropout_mask(x.shape, p, seed, 3)
    y = dropout(x, p, seed, stream=3)
    near(y, torch.where(mask, x.double() / (1 - p), 0), dtype)
    assert torch.equal(y != 0, mask & (x != 0))
    assert abs(mask.float().mean().item() - (1 - p)) < 0.03


def test_seed_and_stream_change_the_mask(device):
    masks = [
        dropout_mask((64, 64), 0.5, torch.tensor(seed, device=device), stream)
        for seed, stream in ((1, 0), (2, 0), (1 << 40, 0), (1, 1))
    ]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 0.4 < (a == b).float().mean().item() < 0.6


def test_gradient_is_the_same_op(draw, device):
    x, dy, seed = draw(9, 50).requires_grad_(), draw(9, 50), torch.tensor(7, device=device)
    (want,) = torch.autograd.grad(reference(x, 0.3, seed), x, dy)
    assert torch.allclose(dropout(dy, 0.3, seed), want)


def test_a_result_is_added_onto_another_in_fp32(draw, near, device, dtype):
    x, there, seed = draw(5, 123, dtype=dtype), draw(5, 123, dtype=dtype), torch.tensor(11, device=device)
    want = there.double() + torch.where(dropout_mask(x.shape, 0.25, seed, 2), x.double() / 0.75, 0)
    got = dropout(x, 0.25, seed, stream=2, onto=there)
    assert got is there
    near(got, want, dtype)
    with pytest.raises(ValueError, match="onto"):
        dropout(x, 0.25, seed, onto=draw(123, 5, dtype=dtype).t())


def test_refuses_one(draw, device):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        dropout(draw(2), 1.0, torch.tensor(0, device=device))
