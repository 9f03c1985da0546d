"""RMSNorm against Hugging Face's modules, forward and backward."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import add_rms_norm, rms_norm, rms_norm_add, rms_norm_apply, rms_norm_backward
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

EPS = 1e-5
LLAMA = {"offset": 0.0, "cast_before_mul": True}
GEMMA = {"offset": 1.0, "cast_before_mul": False}


def stock(kind: dict, weight: torch.Tensor) -> torch.nn.Module:
    module = (GemmaRMSNorm if kind is GEMMA else LlamaRMSNorm)(weight.shape[0], eps=EPS).to(weight.device, weight.dtype)
    module.weight.data.copy_(weight)
    return module


def truth(kind: dict, x: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """y, dx, dw by autograd through the stock module in fp64."""
    x, module = x.double().requires_grad_(), stock(kind, weight).double()
    y = module(x)
    # the stock modules compute in fp32 whatever they are given
    return (y.detach(), *torch.autograd.grad(y, (x, module.weight), dy.double()))


@pytest.mark.parametrize("kind", [LLAMA, GEMMA], ids=["llama", "gemma"])
@pytest.mark.parametrize("shape", [(3, 4, 64), (5, 100), (1, 1), (2, 1537), (40, 16)])
def test_equals_stock(draw, near, dtype, kind, shape):
    x, weight, dy = draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype), draw(*shape, dtype=dtype)
    y, rstd = rms_norm(x, weight, EPS, **kind)
    want, want_dx, want_dw = truth(kind, x, weight, dy)
    near(y, want, dtype)
    assert y.dtype == dtype
    assert rstd.shape == (x[..., 0].numel(),)
    dx, dw = rms_norm_backward(dy, x, weight, rstd, need_dweight=True, **kind)
    if shape[-1] > 1:  # one element normalises to a sign: its gradient is 0 up to rounding
        near(dx, want_dx, dtype)
    near(dw, want_dw, dtype)


def test_forward_rounds_like_stock(draw, dtype):
    x, weight = draw(6, 200, dtype=dtype), draw(200, dtype=dtype)
    for kind in (LLAMA, GEMMA):
        y, _ = rms_norm(x, weight, EPS, **kind)
        want = stock(kind, weight)(x)
        step = torch.finfo(dtype).eps * want.abs().clamp(min=1e-3)
        # one rounding step in 16 bits; in fp32 the order of the sum shows
        assert ((y - want).abs() <= (16 if dtype == torch.float32 else 2) * step).all()


def test_weightless_and_recomputed(draw, near, dtype):
    x, dy = draw(7, 48, dtype=dtype), draw(7, 48, dtype=dtype)
    y, rstd = rms_norm(x, None, EPS)
    want = torch.nn.functional.rms_norm(x.double(), (48,), eps=EPS)
    near(y, want, dtype)
    dx, dw = rms_norm_backward(dy, x, None, rstd, need_dweight=True)
    xd = x.double().requires_grad_()
    (want_dx,) = torch.autograd.grad(torch.nn.functional.rms_norm(xd, (48,), eps=EPS), xd, dy.double())
    near(dx, want_dx, dtype)
    assert dw is None
    weight = draw(48, dtype=dtype)
    y, rstd = rms_norm(x, weight, EPS)
    assert torch.equal(rms_norm_apply(x, weight, rstd), y)


def test_residual_before(draw, near, dtype):
    x, residual, weight = draw(2, 5, 96, dtype=dtype), draw(2, 5, 96, dtype=dtype), draw(96, dtype=dtype)
    y, h, rstd = add_rms_norm(x, residual, weight, EPS, scale=0.25)
    near(h, residual.double() + 0.25 * x.double(), dtype)
    want, want_rstd = rms_norm(h, weight, EPS)
    assert torch.equal(y, want)
    assert torch.equal(rstd, want_rstd)
    dy, dh = draw(2, 5, 96, dtype=dtype), draw(2, 5, 96, dtype=dtype)
    plain, _ = rms_norm_backward(dy, h, weight, rstd)
    both, _ = rms_norm_backward(dy, h, weight, rstd, dresidual=dh)
    near(both, plain.double() + dh.double(), dtype)
    in_place = residual.clone()
    y2, h2, _ = add_rms_norm(x, in_place, weight, EPS, scale=0.25, out_residual=in_place)
    assert h2 is in_place
    assert torch.equal(h2, h)
    assert torch.equal(y2, y)


def test_residual_after(draw, near, dtype):
    x, residual, weight = draw(9, 33, dtype=dtype), draw(9, 33, dtype=dtype), draw(33, dtype=dtype)
    z, rstd = rms_norm_add(x, residual, weight, EPS)
    y, want_rstd = rms_norm(x, weight, EPS)
    assert torch.equal(rstd, want_rstd)
    near(z, residual.double() + y.double(), dtype)


def test_heads_inside_a_packed_projection(draw, dtype):
    packed, weight = draw(6, (4 + 2 + 2) * 16, dtype=dtype), draw(16, dtype=dtype)
    heads = packed[:, 64:96].view(2, 3, 2, 16)
    want, want_rstd = rms_norm(heads.contiguous(), weight, EPS)
    y, rstd = rms_norm(heads, weight, EPS)
    assert torch.equal(y, want)
    assert torch.equal(rstd, want_rstd)
    before = packed.clone()
    rms_norm(heads, weight, EPS, out=heads)
    assert torch.equal(heads, want)
    assert torch.equal(packed[:, :64], before[:, :64])
    assert torch.equal(packed[:, 96:], before[:, 96:])


def test_writes_into_a_wider_buffer(draw, dtype):
    x, weight, wide = draw(2, 3, 32, dtype=dtype), draw(32, dtype=dtype), draw(2, 3, 40, dtype=dtype)
    tail = wide[..., 32:].clone()
    y, _ = rms_norm(x, weight, EPS, out=wide[..., :32])
    assert torch.equal(wide[..., :32], rms_norm(x, weight, EPS)[0])
    assert torch.equal(wide[..., 32:], tail)
    assert y.data_ptr() == wide.data_ptr()


def test_writes_to_heads_that_lie_before_their_tokens(draw, dtype):
    """Attention without a flash kernel leaves gradients so: `[B, S, H, D]` of three strides."""
    x, weight, lying = draw(2, 5, 3, 16, dtype=dtype), draw(16, dtype=dtype), draw(2, 3, 5, 16, dtype=dtype)
    want, rstd = rms_norm(x, weight, EPS)
    heads = lying.transpose(1, 2)
    wanted, _ = rms_norm_backward(heads.contiguous(), x, weight, rstd)
    assert rms_norm_backward(heads, x, weight, rstd, out=heads)[0] is heads
    assert torch.equal(heads, wanted)
    for write in (lambda out: rms_norm(x, weight, EPS, out=out), lambda out: rms_norm_apply(x, weight, rstd, out=out)):
        write(heads)
        assert torch.equal(heads, want)
        heads.zero_()
    residual = draw(2, 5, 3, 16, dtype=dtype)
    both, added, _ = add_rms_norm(x, residual, weight, EPS)
    at = torch.zeros_like(lying).transpose(1, 2)
    add_rms_norm(x, residual, weight, EPS, out=heads, out_residual=at)
    assert torch.equal(heads, both)
    assert torch.equal(at, added)


@pytest.mark.parametrize("target", ["dy", "dresidual"])
def test_backward_in_place(draw, dtype, target):
    given = {"dy": draw(5, 70, dtype=dtype), "dresidual": draw(5, 70, dtype=dtype)}
    x, weight = draw(5, 70, dtype=dtype), draw(70, dtype=dtype)
    _, rstd = rms_norm(x, weight, EPS)
    want, _ = rms_norm_backward(given["dy"], x, weight, rstd, dresidual=given["dresidual"])
    got, _ = rms_norm_backward(given["dy"], x, weight, rstd, dresidual=given["dresidual"], out=given[target])
    assert got is given[target]
    assert torch.equal(got, want)


def test_zero_rows_have_finite_gradients(draw, device):
    x = torch.zeros(4, 8, device=device)
    y, rstd = rms_norm(x, torch.ones(8, device=device), EPS)
    dx, dw = rms_norm_backward(draw(4, 8), x, torch.ones(8, device=device), rstd, need_dweight=True)
    assert torch.equal(y, x)
    assert dx.isfinite().all()
    assert torch.equal(dw, torch.zeros(8, device=device))
