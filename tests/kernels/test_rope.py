"""Rotary embedding against Hugging Face's functions, both layouts, partial, in place, and its transpose."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import rope
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved_stock
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as half_stock

from tests.support.every import every

B, S, HQ, HK, D = 2, 3, 3, 1, 24


def angles(draw, dtype, width: int, interleaved: bool, batch: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    t = draw(batch, S, width // 2)
    t = t.repeat_interleave(2, -1) if interleaved else torch.cat((t, t), -1)
    return (1.2 * t.cos()).to(dtype), (1.2 * t.sin()).to(dtype)


def stock(q, k, cos, sin, interleaved):
    f = interleaved_stock if interleaved else half_stock
    return f(q.double(), k.double(), cos.double(), sin.double(), unsqueeze_dim=2)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
@pytest.mark.parametrize("batch", [1, B])
def test_equals_stock(draw, near, dtype, interleaved, batch):
    q, k = draw(B, S, HQ, D, dtype=dtype), draw(B, S, HK, D, dtype=dtype)
    cos, sin = angles(draw, dtype, D, interleaved, batch)
    got = rope(q, k, cos, sin, interleaved=interleaved)
    for mine, want in zip(got, stock(q, k, cos, sin, interleaved), strict=True):
        near(mine, want, torch.float32 if interleaved and dtype == torch.float32 else dtype)
        assert mine.is_contiguous()
    if not interleaved:
        half = [t[..., : D // 2] for t in (cos, sin)]
        assert every(torch.equal(a, b) for a, b in zip(rope(q, k, *half), got, strict=True))


@pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
def test_inverse_is_the_gradient(draw, near, dtype, interleaved):
    q, k, dq, dk = (draw(B, S, h, D, dtype=dtype) for h in (HQ, HK, HQ, HK))
    cos, sin = angles(draw, dtype, D, interleaved)
    leaves = [q.double().requires_grad_(), k.double().requires_grad_()]
    f = interleaved_stock if interleaved else half_stock
    # Cohere's function computes in fp32 and returns the input's dtype
    out = f(*leaves, cos.double(), sin.double(), unsqueeze_dim=2)
    want = torch.autograd.grad(out, leaves, (dq.double(), dk.double()))
    for mine, truth in zip(rope(dq, dk, cos, sin, interleaved=interleaved, inverse=True), want, strict=True):
        near(mine, truth, dtype)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
def test_partial_in_a_packed_projection(draw, near, dtype, inplace, interleaved):
    packed = draw(B * S, (HQ + 2 * HK) * D, dtype=dtype)
    before = packed.clone()
    q = packed[:, : HQ * D].view(B, S, HQ, D)
    k = packed[:, HQ * D : (HQ + HK) * D].view(B, S, HK, D)
    r = 16
    cos, sin = angles(draw, dtype, r, interleaved)
    want = stock(q[..., :r], k[..., :r], cos, sin, interleaved)
    rest = q[..., r:].clone(), k[..., r:].clone()
    got = rope(q, k, cos, sin, interleaved=interleaved, rotary_dim=r, inplace=inplace)
    for mine, turned, still in zip(got, want, rest, strict=True):
        near(mine[..., :r], turned, dtype)
        assert torch.equal(mine[..., r:], still)
    if inplace:
        assert got[0].data_ptr() == packed.data_ptr()
        assert torch.equal(packed[:, (HQ + HK) * D :], before[:, (HQ + HK) * D :])
    else:
        assert torch.equal(packed, before)


def test_transposed_heads_and_no_k(draw, near, dtype):
    q = draw(B, HQ, S, D, dtype=dtype).transpose(1, 2)
    cos, sin = angles(draw, dtype, D, False)
    got, none = rope(q, None, cos, sin)
    near(got, stock(q, q, cos, sin, False)[0], dtype)
    assert none is None


def test_many_heads(draw, near):
    q, k = draw(1, S, 40, 8), draw(1, S, 33, 8)
    t = draw(1, S, 4)
    t = torch.cat((t, t), -1)
    for mine, want in zip(rope(q, k, t.cos(), t.sin()), stock(q, k, t.cos(), t.sin(), False), strict=True):
        near(mine, want, torch.float32)


def test_angles_must_fit(draw):
    q = draw(1, S, 2, 8)
    with pytest.raises(ValueError, match="rotary_dim 8"):
        rope(q, q, draw(1, S, 6), draw(1, S, 6))
