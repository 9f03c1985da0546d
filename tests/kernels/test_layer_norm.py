"""LayerNorm against torch, forward and backward."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import layer_norm, layer_norm_apply, layer_norm_backward

EPS = 1e-5


@pytest.mark.parametrize("affine", ["both", "weight", "none"])
@pytest.mark.parametrize("shape", [(2, 3, 64), (5, 100), (9, 3), (2, 1025)])
def test_equals_torch(draw, near, dtype, shape, affine):
    x, dy, dres = (draw(*shape, dtype=dtype) for _ in range(3))
    weight = None if affine == "none" else draw(shape[-1], dtype=dtype)
    bias = draw(shape[-1], dtype=dtype) if affine == "both" else None
    leaves = [t.double().requires_grad_() for t in (x, weight, bias) if t is not None]
    wd, bd = [*leaves[1:], None, None][:2]
    want = torch.nn.functional.layer_norm(leaves[0], shape[-1:], wd, bd, EPS)
    grads = torch.autograd.grad(want, leaves, dy.double())
    y, mean, rstd = layer_norm(x, weight, bias, EPS)
    near(y, want.detach(), dtype)
    assert torch.equal(layer_norm_apply(x, weight, bias, mean, rstd), y)
    dx, dw, db = layer_norm_backward(dy, x, weight, mean, rstd, need_dweight=True, dresidual=dres)
    near(dx, grads[0] + dres.double(), dtype)
    if weight is not None:
        near(dw, grads[1], dtype)
        near(db, dy.double().flatten(0, -2).sum(0), dtype)
    else:
        assert dw is None
        assert db is None


def test_strided_rows(draw, dtype):
    wide, weight, bias = draw(6, 50, dtype=dtype), draw(20, dtype=dtype), draw(20, dtype=dtype)
    x = wide[:, 10:30]
    assert torch.equal(layer_norm(x, weight, bias, EPS)[0], layer_norm(x.contiguous(), weight, bias, EPS)[0])
