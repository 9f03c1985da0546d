"""RMSNorm with the residual add before it, or after it, in the same pass.

    h = residual + scale * x                      (add_rms_norm; else h = x)
    rstd = 1 / sqrt(mean(h^2) + eps)
    y = (offset + w) * (h * rstd)                 (offset = 1 for Gemma)
    z = residual + y                              (rms_norm_add: post-norm blocks)

    backward, with g = dy * (offset + w), n = h * rstd:
    dh = rstd * (g - n * mean(g * n)) [+ dresidual]
    dw = sum over rows of dy * n

`cast_before_mul` is Llama's order (n is rounded to x's dtype, then multiplied); without it the product is made in fp32
and rounded once (Gemma, and T5-like norms with multiply-then-cast). Zhang & Sennrich 2019, arXiv 1910.07467.
"""

import torch
from torch import Tensor

from ._runtime import op, rows


def reference(
    x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0, cast_before_mul: bool = True
) -> Tensor:
    """Stock Hugging Face arithmetic, differentiable by autograd: the truth the kernels are tested against."""
    n = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return n.to(x.dtype)
    if cast_before_mul:
        return ((weight + offset) * n.to(x.dtype)).to(x.dtype)
    return ((weight.float() + offset) * n).to(x.dtype)


# ---------------------------------------------------------------- plain torch


def _apply_torch(h: Tensor, weight: Tensor | None, rstd: Tensor, offset: float, cast: bool) -> Tensor:
    n = h.float() * rstd[:, None]
    if weight is None:
        return n.to(h.dtype)
    n = n.to(h.dtype).float() if cast else n
    return ((weight.float() + offset) * n).to(h.dtype)


def _rstd_torch(h: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(h.float().pow(2).mean(-1) + eps)


def _backward_torch(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    offset: float,
    cast: bool,
    need_dweight: bool,
    dresidual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    n = x.float() * rstd[:, None]
    g = dy.float() if weight is None else dy.float() * (weight.float() + offset)
    dx = rstd[:, None] * (g - n * (g * n).mean(-1, keepdim=True))
    if dresidual is not None:
        dx = dx + dresidual.float()
    dweight = x.new_empty(0)
    if need_dweight and weight is not None:
        dweight = (dy.float() * (n.to(x.dtype).float() if cast else n)).sum(0).to(weight.dtype)
    return dx.to(x.dtype), dweight


# ---------------------------------------------------------------- ops


def _fake_forward(x, weight, residual, eps, offset, cast, scale, post):
    flat = x.new_empty(x.shape)
    h = x.new_empty(x.shape) if residual is not None and not post else x.new_empty(0)
    return flat, h, x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


@op(
    "rms_norm(Tensor x, Tensor? weight, Tensor? residual, float eps, float offset, bool cast, float scale, bool post)"
    " -> (Tensor, Tensor, Tensor)",
    _fake_forward,
)
def _rms_norm(x, weight, residual, eps, offset, cast, scale, post):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = torch.empty(x.shape, dtype=x.dtype, device=x.device) if residual is not None and not post else x.new_empty(0)
    return y, h, _forward(x, weight, residual, eps, offset, cast, scale, post, y, h)


def _fake_forward_out(x, weight, residual, eps, offset, cast, scale, post, y, h):
    return x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


@op(
    "rms_norm_out(Tensor x, Tensor? weight, Tensor? residual, float eps, float offset, bool cast, float scale, bool post,"
    " Tensor(a!) y, Tensor(b!)? h) -> Tensor",
    _fake_forward_out,
)
def _rms_norm_out(x, weight, residual, eps, offset, cast, scale, post, y, h):
    return _forward(x, weight, residual, eps, offset, cast, scale, post, y, h)


def _forward(x, weight, residual, eps, offset, cast, scale, post, y, h) -> Tensor:
    x2 = rows(x)
    if residual is not None and not post:
        x2 = (rows(residual).float() + scale * x2.float()).to(x.dtype)
        h.copy_(x2.view(h.shape))
    rstd = _rstd_torch(x2, eps)
    out = _apply_torch(x2, weight, rstd, offset, cast)
    if residual is not None and post:
        out = rows(residual) + out
    y.copy_(out.view(y.shape))
    return rstd


def _fake_apply(x, weight, rstd, offset, cast):
    return x.new_empty(x.shape)


@op("rms_norm_apply(Tensor x, Tensor? weight, Tensor rstd, float offset, bool cast) -> Tensor", _fake_apply)
def _rms_norm_apply(x, weight, rstd, offset, cast):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _apply(x, weight, rstd, offset, cast, y)
    return y


@op(
    "rms_norm_apply_out(Tensor x, Tensor? weight, Tensor rstd, float offset, bool cast, Tensor(a!) y) -> ()",
    lambda x, weight, rstd, offset, cast, y: None,
)
def _rms_norm_apply_out(x, weight, rstd, offset, cast, y):
    _apply(x, weight, rstd, offset, cast, y)


def _apply(x, weight, rstd, offset, cast, y) -> None:
    y.copy_(_apply_torch(rows(x), weight, rstd, offset, cast).view(y.shape))


def _fake_backward(dy, x, weight, rstd, offset, cast, need_dweight, dresidual):
    return x.new_empty(x.shape), weight.new_empty(weight.shape) if need_dweight else x.new_empty(0)


@op(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, float offset, bool cast, bool need_dweight,"
    " Tensor? dresidual) -> (Tensor, Tensor)",
    _fake_backward,
)
def _rms_norm_backward(dy, x, weight, rstd, offset, cast, need_dweight, dresidual):
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return dx, _backward(dy, x, weight, rstd, offset, cast, need_dweight, dresidual, dx)


def _fake_backward_out(dy, x, weight, rstd, offset, cast, need_dweight, dresidual, dx):
    return weight.new_empty(weight.shape) if need_dweight else x.new_empty(0)


@op(
    "rms_norm_backward_out(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, float offset, bool cast, bool need_dweight,"
    " Tensor? dresidual, Tensor(a!) dx) -> Tensor",
    _fake_backward_out,
)
def _rms_norm_backward_out(dy, x, weight, rstd, offset, cast, need_dweight, dresidual, dx):
    return _backward(dy, x, weight, rstd, offset, cast, need_dweight, dresidual, dx)


def _backward(dy, x, weight, rstd, offset, cast, need_dweight, dresidual, dx) -> Tensor:
    dres2 = rows(dresidual) if dresidual is not None else None
    out, dweight = _backward_torch(rows(dy), rows(x), weight, rstd, offset, cast, need_dweight, dres2)
    dx.copy_(out.view(dx.shape))
    return dweight


# ---------------------------------------------------------------- public


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    offset: float = 0.0,
    cast_before_mul: bool = True,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise the last dimension of `x`.

    Args:
        x: `[..., H]`, any float dtype, rows at any stride.
        weight: `[H]`, or None for a weightless norm.
        eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).
        cast_before_mul: round the normalised row to x's dtype before the weight (Llama) or after (Gemma).
        out: `[..., H]`, where y goes (may be a strided slice of a wider buffer; must not be x).

    Returns:
        y in x's dtype, and rstd `[rows]` in fp32 for the backward pass.
    """
    if out is not None:
        return out, _rms_norm_out(x, weight, None, eps, offset, cast_before_mul, 1.0, False, out, None)
    y, _, rstd = _rms_norm(x, weight, None, eps, offset, cast_before_mul, 1.0, False)
    return y, rstd


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    offset: float = 0.0,
    cast_before_mul: bool = True,
    scale: float = 1.0,
    out: Tensor | None = None,
    out_residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`h = residual + scale * x`, then RMSNorm of h, in one pass.

    `scale` is Granite's residual multiplier. `out_residual` may be `residual` or `x` itself (in place).
    The backward pass of both is `rms_norm_backward(dy, h, ..., dresidual=dh)`: its result is the gradient of the
    residual, and (times `scale`) of x.

    Returns:
        y, h, rstd.
    """
    if out is not None or out_residual is not None:
        y = torch.empty_like(x) if out is None else out
        h = torch.empty_like(x) if out_residual is None else out_residual
        rstd = _rms_norm_out(x, weight, residual, eps, offset, cast_before_mul, scale, False, y, h)
        return y, h, rstd
    return _rms_norm(x, weight, residual, eps, offset, cast_before_mul, scale, False)


def rms_norm_add(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    offset: float = 0.0,
    cast_before_mul: bool = True,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`residual + rms_norm(x)` (Gemma 2's and OLMo 2's post-norms). `out` may be `residual`. Returns z, rstd."""
    if out is not None:
        return out, _rms_norm_out(x, weight, residual, eps, offset, cast_before_mul, 1.0, True, out, None)
    z, _, rstd = _rms_norm(x, weight, residual, eps, offset, cast_before_mul, 1.0, True)
    return z, rstd


def rms_norm_apply(
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    *,
    offset: float = 0.0,
    cast_before_mul: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """y again, from x and the saved rstd `[rows]`: bit-equal to the forward pass. For blocks that do not keep y."""
    if out is not None:
        _rms_norm_apply_out(x, weight, rstd, offset, cast_before_mul, out)
        return out
    return _rms_norm_apply(x, weight, rstd, offset, cast_before_mul)


def rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    *,
    offset: float = 0.0,
    cast_before_mul: bool = True,
    need_dweight: bool = False,
    dresidual: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gradient of `rms_norm`.

    Args:
        dy, x: `[..., H]`; x is what was normalised (h after a residual add).
        rstd: `[rows]` fp32, from the forward pass.
        need_dweight: also return the weight's gradient (deterministic: partial sums in a fixed order).
        dresidual: `[..., H]` added to dx (the gradient that reaches h past the norm).
        out: where dx goes; may be `dy` or `dresidual` itself.

    Returns:
        dx in x's dtype, dweight in weight's dtype or None.
    """
    need = need_dweight and weight is not None
    if out is not None:
        dx = out
        dw = _rms_norm_backward_out(dy, x, weight, rstd, offset, cast_before_mul, need, dresidual, out)
    else:
        dx, dw = _rms_norm_backward(dy, x, weight, rstd, offset, cast_before_mul, need, dresidual)
    return dx, dw if need else None
