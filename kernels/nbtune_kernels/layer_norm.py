"""LayerNorm.

    n = (x - mean) * rstd,  rstd = 1 / sqrt(var + eps)
    y = w * n + b
    dx = rstd * (g - mean(g) - n * mean(g * n)) [+ dresidual],  g = dy * w;  dw = sum dy * n;  db = sum dy

Ba, Kiros & Hinton 2016, arXiv 1607.06450.
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import (
    FUSED,
    compute_capability,
    flat_rows,
    fresh,
    jit,
    next_power_of_2,
    op,
    row_stats,
    rows,
    tl,
    use_triton,
)
from nbtune_kernels._sums import Partials
from nbtune_kernels.tables import launch, stages_for, warps_for


def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise `x [..., H]` by stock arithmetic, differentiable by autograd."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


# ---------------------------------------------------------------- Triton: a program holds a whole row


@jit
def _forward_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, rstd_ptr, x_stride, y_stride, width, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, KNOWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < width
    x = tl.load(x_ptr + row * x_stride + cols, mask, other=0.0).to(tl.float32)
    if KNOWN:
        mean, rstd = tl.load(mean_ptr + row), tl.load(rstd_ptr + row)
        d = x - mean
    else:
        # rounded as it is stored: an approximate quotient may be fused into the difference, and differ from it
        mean = tl.div_rn(tl.sum(x, 0), width * 1.0)
        d = tl.where(mask, x - mean, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(d * d, 0) / width + eps)
        tl.store(mean_ptr + row, mean)
        tl.store(rstd_ptr + row, rstd)
    y = d * rstd
    if WEIGHT:
        y *= tl.load(w_ptr + cols, mask, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(b_ptr + cols, mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * y_stride + cols, y.to(y_ptr.dtype.element_ty), mask)


@jit
def _backward_kernel(
    dy_ptr, x_ptr, w_ptr, res_ptr, mean_ptr, rstd_ptr, dx_ptr, part_ptr, g_stride, x_stride, r_stride, d_stride, n_rows,
    width,
    WEIGHT: tl.constexpr, RES: tl.constexpr, DW: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK)
    mask = cols < width
    if WEIGHT:
        w = tl.load(w_ptr + cols, mask, other=0.0).to(tl.float32)
    if DW:
        dw = tl.zeros((BLOCK,), tl.float32)
        db = tl.zeros((BLOCK,), tl.float32)
    for index in tl.range(tl.program_id(0), n_rows, tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(index, tl.int64)
        g = tl.load(dy_ptr + row * g_stride + cols, mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * x_stride + cols, mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        n = tl.where(mask, (x - tl.load(mean_ptr + row)) * rstd, 0.0)
        if DW:
            dw += g * n
            db += g
        if WEIGHT:
            g = g * w
        dx = rstd * (g - tl.sum(g, 0) / width - n * (tl.sum(g * n, 0) / width))
        if RES:
            dx += tl.load(res_ptr + row * r_stride + cols, mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * d_stride + cols, dx.to(dx_ptr.dtype.element_ty), mask)
    if DW:
        at = part_ptr + tl.program_id(0).to(tl.int64) * 2 * width + cols
        tl.store(at, dw, mask)
        tl.store(at + width, db, mask)


def _launch_forward(x, weight, bias, eps, y, mean, rstd, known) -> None:
    x2, y2, width = flat_rows(x), flat_rows(y, written=True), x.shape[-1]
    block = next_power_of_2(width)
    _forward_kernel[(x2.shape[0],)](
        x2, weight if weight is not None else x2, bias if bias is not None else x2, y2, mean, rstd, x2.stride(0),
        y2.stride(0), width, eps, WEIGHT=weight is not None, BIAS=bias is not None, KNOWN=known, BLOCK=block,
        **FUSED, num_warps=warps_for("layer_norm", compute_capability(x.device), block),
    )  # fmt: skip


def _launch_backward(dy, x, weight, mean, rstd, dresidual, dx, dweight, dbias) -> None:
    dy2, x2, dx2, width = flat_rows(dy), flat_rows(x), flat_rows(dx, written=True), x.shape[-1]
    res = flat_rows(dresidual) if dresidual is not None else x2
    n, block, capability = x2.shape[0], next_power_of_2(width), compute_capability(x.device)
    size = block * (dy.element_size() + (1 if dresidual is None else 2) * x.element_size())
    sums = Partials(
        [] if dweight is None else [dweight, dbias],
        n,
        launch("layer_norm_backward", capability)["programs_per_sm"],
        rstd,
    )
    _backward_kernel[(sums.programs,)](
        dy2, x2, weight if weight is not None else x2, res, mean, rstd, dx2, sums.buffer,
        *(t.stride(0) for t in (dy2, x2, res, dx2)), n, width, WEIGHT=weight is not None, RES=dresidual is not None,
        DW=dweight is not None, BLOCK=block,
        STAGES=1 if dweight is None else stages_for("layer_norm_backward", capability, size), **FUSED,
        num_warps=warps_for("layer_norm_backward", capability, block),
    )  # fmt: skip
    sums.total()


# ---------------------------------------------------------------- plain torch


def _apply_torch(x, weight, bias, mean, rstd) -> Tensor:
    y = (x.float() - mean[:, None]) * rstd[:, None]
    y = y if weight is None else y * weight.float()
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _backward_torch(dy, x, weight, mean, rstd, dresidual, dx, dweight, dbias) -> None:
    g, n = rows(dy).float(), (rows(x).float() - mean[:, None]) * rstd[:, None]
    if dweight is not None:
        dweight.copy_((g * n).sum(0))
        dbias.copy_(g.sum(0))
    if weight is not None:
        g = g * weight.float()
    out = rstd[:, None] * (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True))
    dx.copy_((out if dresidual is None else out + rows(dresidual).float()).view(dx.shape))


# ---------------------------------------------------------------- ops


@op(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor(a!) y, Tensor(b!) mean, Tensor(c!) rstd)"
    " -> ()",
    lambda *_: None,
)
def _layer_norm(x, weight, bias, eps, y, mean, rstd):
    if use_triton(x):
        return _launch_forward(x, weight, bias, eps, y, mean, rstd, False)
    var, mu = torch.var_mean(rows(x).float(), -1, correction=0)
    mean.copy_(mu)
    torch.rsqrt(var + eps, out=rstd)
    y.copy_(_apply_torch(rows(x), weight, bias, mean, rstd).view(y.shape))


@op(
    "layer_norm_apply(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, Tensor(a!) y) -> ()",
    lambda *_: None,
)
def _layer_norm_apply(x, weight, bias, mean, rstd, y):
    if use_triton(x):
        return _launch_forward(x, weight, bias, 0.0, y, mean, rstd, True)
    y.copy_(_apply_torch(rows(x), weight, bias, mean, rstd).view(y.shape))


@op(
    "layer_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, Tensor? dresidual,"
    " Tensor(a!) dx, Tensor(b!)? dweight, Tensor(c!)? dbias) -> ()",
    lambda *_: None,
)
def _layer_norm_backward(dy, x, weight, mean, rstd, dresidual, dx, dweight, dbias):
    run = _launch_backward if use_triton(x) else _backward_torch
    run(dy, x, weight, mean, rstd, dresidual, dx, dweight, dbias)


# ---------------------------------------------------------------- public


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the last dimension of `x [..., H]`; returns y in x's dtype, mean and rstd `[rows]` in fp32.

    `out` is where y goes: rows at one stride, or x itself.
    """
    y, mean, rstd = fresh(x) if out is None else out, row_stats(x), row_stats(x)
    _layer_norm(x, weight, bias, eps, y, mean, rstd)
    return y, mean, rstd


def layer_norm_apply(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Compute y again, `[..., H]` in x's dtype, from x and the saved statistics (fp32 `[rows]`): the forward pass's
    bits."""
    y = fresh(x) if out is None else out
    _layer_norm_apply(x, weight, bias, mean, rstd, y)
    return y


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    need_dweight: bool = False,
    dresidual: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the gradient of `layer_norm`: dx `[..., H]` in x's dtype (with `dresidual` added), dweight, dbias `[H]`
    in weight's dtype or None.

    `out` is where dx goes; it may be `dy` or `dresidual` itself.
    """
    dx = fresh(x) if out is None else out
    dweight = torch.empty_like(weight) if need_dweight and weight is not None else None
    dbias = None if dweight is None else torch.empty_like(dweight)
    _layer_norm_backward(dy, x, weight, mean, rstd, dresidual, dx, dweight, dbias)
    return dx, dweight, dbias
