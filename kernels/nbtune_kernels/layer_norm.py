"""LayerNorm.

    n = (x - mean) * rstd,  rstd = 1 / sqrt(var + eps)
    y = w * n + b
    dx = rstd * (g - mean(g) - n * mean(g * n)) [+ dresidual],  g = dy * w;  dw = sum dy * n;  db = sum dy

Ba, Kiros & Hinton 2016, arXiv 1607.06450.
"""

import torch
from torch import Tensor

from ._runtime import op, rows


def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Stock arithmetic, differentiable by autograd."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _apply_torch(x, weight, bias, mean, rstd) -> Tensor:
    y = (x.float() - mean[:, None]) * rstd[:, None]
    y = y if weight is None else y * weight.float()
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _fake_forward(x, weight, bias, eps):
    stat = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
    return x.new_empty(x.shape), stat, torch.empty_like(stat)


@op("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)", _fake_forward)
def _layer_norm(x, weight, bias, eps):
    x2 = rows(x)
    var, mean = torch.var_mean(x2.float(), -1, correction=0)
    rstd = torch.rsqrt(var + eps)
    return _apply_torch(x2, weight, bias, mean, rstd).view(x.shape), mean, rstd


@op(
    "layer_norm_apply(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd) -> Tensor",
    lambda x, weight, bias, mean, rstd: x.new_empty(x.shape),
)
def _layer_norm_apply(x, weight, bias, mean, rstd):
    return _apply_torch(rows(x), weight, bias, mean, rstd).view(x.shape)


def _fake_backward(dy, x, weight, mean, rstd, need_dweight, dresidual):
    dw = weight.new_empty(weight.shape) if need_dweight else x.new_empty(0)
    return x.new_empty(x.shape), dw, torch.empty_like(dw)


@op(
    "layer_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, bool need_dweight,"
    " Tensor? dresidual) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)
def _layer_norm_backward(dy, x, weight, mean, rstd, need_dweight, dresidual):
    dy2, x2 = rows(dy).float(), rows(x)
    n = (x2.float() - mean[:, None]) * rstd[:, None]
    g = dy2 if weight is None else dy2 * weight.float()
    dx = rstd[:, None] * (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True))
    if dresidual is not None:
        dx = dx + rows(dresidual).float()
    dx = dx.to(x.dtype).view(x.shape)
    if not need_dweight:
        return dx, x.new_empty(0), x.new_empty(0)
    return dx, (dy2 * n).sum(0).to(weight.dtype), dy2.sum(0).to(weight.dtype)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the last dimension of `x [..., H]`; returns y in x's dtype, mean and rstd `[rows]` in fp32."""
    return _layer_norm(x, weight, bias, eps)


def layer_norm_apply(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor) -> Tensor:
    """y again, from x and the saved statistics."""
    return _layer_norm_apply(x, weight, bias, mean, rstd)


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    need_dweight: bool = False,
    dresidual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradient of `layer_norm`: dx (with `dresidual` added), and dweight, dbias in weight's dtype or None."""
    need = need_dweight and weight is not None
    dx, dw, db = _layer_norm_backward(dy, x, weight, mean, rstd, need, dresidual)
    return (dx, dw, db) if need else (dx, None, None)
