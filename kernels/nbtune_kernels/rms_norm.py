"""RMSNorm with the residual add before it, or after it, in the same pass.

    h = residual + scale * x                      (add_rms_norm; else h = x)
    rstd = 1 / sqrt(mean(h^2) + eps)
    y = (offset + w) * (h * rstd)                 (offset = 1 for Gemma)
    z = residual + y                              (rms_norm_add: post-norm blocks)

    backward, with g = dy * (offset + w), n = h * rstd:
    dh = rstd * (g - n * mean(g * n)) [+ dresidual]
    dw = sum over rows of dy * n

`cast_before_mul` is Llama's order (n is rounded to x's dtype, then multiplied); without it the product is made in fp32
and rounded once (Gemma). Zhang & Sennrich 2019, arXiv 1910.07467.
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import (
    FUSED,
    cdiv,
    compute_capability,
    fresh,
    jit,
    landed,
    next_power_of_2,
    op,
    row_layout,
    row_start,
    row_stats,
    rows,
    tl,
    use_triton,
)
from nbtune_kernels._sums import Partials
from nbtune_kernels.tables import launch, stages_for, warps_for


def reference(
    x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0, cast_before_mul: bool = True
) -> Tensor:
    """Normalise `x [..., H]` by stock Hugging Face arithmetic, differentiable: the truth for the kernels."""
    n = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return n.to(x.dtype)
    if cast_before_mul:
        return ((weight + offset) * n.to(x.dtype)).to(x.dtype)
    return ((weight.float() + offset) * n).to(x.dtype)


# ---------------------------------------------------------------- Triton: a program holds BLOCK_R whole rows


@jit
def _cells(row, cols, inner, outer, step, FLAT: tl.constexpr):
    """Return the offsets of a program's rows: one row is a vector, several are a tile."""
    start = row_start(row, inner, outer, step)
    if FLAT:
        return start + cols
    else:
        return start[:, None] + cols[None, :]


@jit
def _forward_kernel(
    x_ptr, w_ptr, res_ptr, y_ptr, h_ptr, rstd_ptr, n_rows, width, eps, offset, scale,
    x_inner, x_outer, x_step, r_inner, r_outer, r_step, y_inner, y_outer, y_step, h_inner, h_outer, h_step,
    PRE: tl.constexpr, POST: tl.constexpr, WEIGHT: tl.constexpr, CAST: tl.constexpr, KNOWN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    FLAT: tl.constexpr = BLOCK_R == 1
    cols = tl.arange(0, BLOCK_H)
    if FLAT:
        row = tl.program_id(0).to(tl.int64)
        live = row < n_rows
        mask = cols < width
        inside = mask
    else:
        row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        live = row < n_rows
        inside = (cols < width)[None, :]
        mask = live[:, None] & inside
    raw = tl.load(x_ptr + _cells(row, cols, x_inner, x_outer, x_step, FLAT), mask, other=0.0)
    h = raw.to(tl.float32)
    if PRE or POST:
        r = tl.load(res_ptr + _cells(row, cols, r_inner, r_outer, r_step, FLAT), mask, other=0.0).to(tl.float32)
    if PRE:
        rounded = (r + scale * h).to(x_ptr.dtype.element_ty)
        tl.store(h_ptr + _cells(row, cols, h_inner, h_outer, h_step, FLAT), rounded, mask)
        h = rounded.to(tl.float32)
    if KNOWN:
        rstd = tl.load(rstd_ptr + row, live, other=0.0)
    else:
        rstd = 1.0 / tl.sqrt(tl.sum(h * h, 0 if FLAT else 1) / width + eps)
        tl.store(rstd_ptr + row, rstd, live)
    y = h * (rstd if FLAT else rstd[:, None])
    if WEIGHT:
        w = tl.load(w_ptr + (cols if FLAT else cols[None, :]), inside, other=0.0).to(tl.float32) + offset
        if CAST:
            y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
        y = y * w
    if POST:
        y = y.to(x_ptr.dtype.element_ty).to(tl.float32) + r
    tl.store(y_ptr + _cells(row, cols, y_inner, y_outer, y_step, FLAT), y.to(y_ptr.dtype.element_ty), mask)


@jit
def _backward_kernel(
    dy_ptr, x_ptr, w_ptr, res_ptr, rstd_ptr, dx_ptr, part_ptr, n_rows, width, offset,
    g_inner, g_outer, g_step, x_inner, x_outer, x_step, r_inner, r_outer, r_step, d_inner, d_outer, d_step, blocks,
    WEIGHT: tl.constexpr, CAST: tl.constexpr, RES: tl.constexpr, DW: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK_H)[None, :]
    inside = cols < width
    if WEIGHT:
        w = tl.load(w_ptr + cols, inside, other=0.0).to(tl.float32) + offset
    if DW:
        dw = tl.zeros((BLOCK_R, BLOCK_H), tl.float32)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):
        row = (block * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
        live = row < n_rows
        mask = live[:, None] & inside
        g = tl.load(dy_ptr + row_start(row, g_inner, g_outer, g_step)[:, None] + cols, mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row_start(row, x_inner, x_outer, x_step)[:, None] + cols, mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, live, other=0.0)[:, None]
        n = x * rstd
        if DW:
            dw += g * (n.to(x_ptr.dtype.element_ty).to(tl.float32) if CAST else n)
        if WEIGHT:
            g = g * w
        dx = rstd * (g - n * (tl.sum(g * n, 1) / width)[:, None])
        if RES:
            at = row_start(row, r_inner, r_outer, r_step)[:, None] + cols
            dx += tl.load(res_ptr + at, mask, other=0.0).to(tl.float32)
        at = row_start(row, d_inner, d_outer, d_step)[:, None] + cols
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask)
    if DW:
        total = tl.sum(dw, 0)[None, :]
        tl.store(part_ptr + tl.program_id(0).to(tl.int64) * width + cols, total, inside)


def _tile(width: int) -> tuple[int, int]:
    """Return rows and columns of a program: one wide row, or several narrow ones (the q and k norms of heads)."""
    block_h = next_power_of_2(width)
    return max(1, 2048 // block_h), block_h


def _launch_forward(x, weight, residual, eps, offset, cast, scale, post, y, h, rstd, known) -> None:
    xs, ys = row_layout(x), row_layout(y)
    rs = row_layout(residual) if residual is not None else xs
    hs = row_layout(h) if h is not None else xs
    n, width = rstd.shape[0], x.shape[-1]
    block_r, block_h = _tile(width)
    _forward_kernel[(cdiv(n, block_r),)](
        xs.tensor, weight if weight is not None else x, rs.tensor, ys.tensor, hs.tensor, rstd,
        n, width, eps, offset, scale,
        *xs[1:], *rs[1:], *ys[1:], *hs[1:],
        PRE=residual is not None and not post, POST=residual is not None and post, WEIGHT=weight is not None, CAST=cast,
        KNOWN=known, BLOCK_R=block_r, BLOCK_H=block_h,
        **FUSED, num_warps=warps_for("rms_norm", compute_capability(x.device), block_r * block_h),
    )  # fmt: skip
    landed(ys, y)
    if h is not None:
        landed(hs, h)


def _launch_backward(dy, x, weight, rstd, offset, cast, dresidual, dx, dweight) -> None:
    gs, xs, ds = row_layout(dy), row_layout(x), row_layout(dx)
    rs = row_layout(dresidual) if dresidual is not None else xs
    n, width = rstd.shape[0], x.shape[-1]
    block_r, block_h = _tile(width)
    blocks, capability = cdiv(n, block_r), compute_capability(x.device)
    size = block_r * block_h * (dy.element_size() + (1 if dresidual is None else 2) * x.element_size())
    sums = Partials(
        [] if dweight is None else [dweight], blocks, launch("rms_norm_backward", capability)["programs_per_sm"], rstd
    )
    _backward_kernel[(sums.programs,)](
        gs.tensor, xs.tensor, weight if weight is not None else x, rs.tensor, rstd, ds.tensor, sums.buffer,
        n, width, offset,
        *gs[1:], *xs[1:], *rs[1:], *ds[1:], blocks,
        WEIGHT=weight is not None, CAST=cast, RES=dresidual is not None, DW=dweight is not None,
        BLOCK_R=block_r, BLOCK_H=block_h,
        STAGES=1 if dweight is None else stages_for("rms_norm_backward", capability, size), **FUSED,
        num_warps=warps_for("rms_norm_backward", capability, block_r * block_h),
    )  # fmt: skip
    sums.total()
    landed(ds, dx)


# ---------------------------------------------------------------- plain torch


def _apply_torch(h: Tensor, weight: Tensor | None, rstd: Tensor, offset: float, cast: bool) -> Tensor:
    n = h.float() * rstd[:, None]
    if weight is None:
        return n.to(h.dtype)
    n = n.to(h.dtype).float() if cast else n
    return ((weight.float() + offset) * n).to(h.dtype)


def _forward_torch(x, weight, residual, eps, offset, cast, scale, post, y, h, rstd) -> None:
    x2 = rows(x)
    if h is not None:
        x2 = (rows(residual).float() + scale * x2.float()).to(x.dtype)
        h.copy_(x2.view(h.shape))
    torch.rsqrt(x2.float().pow(2).mean(-1) + eps, out=rstd)
    out = _apply_torch(x2, weight, rstd, offset, cast)
    y.copy_((rows(residual) + out if post else out).view(y.shape))


def _backward_torch(dy, x, weight, rstd, offset, cast, dresidual, dx, dweight) -> None:
    n, g = rows(x).float() * rstd[:, None], rows(dy).float()
    if dweight is not None:
        dweight.copy_((g * (n.to(x.dtype).float() if cast else n)).sum(0))
    if weight is not None:
        g = g * (weight.float() + offset)
    out = rstd[:, None] * (g - n * (g * n).mean(-1, keepdim=True))
    dx.copy_((out if dresidual is None else out + rows(dresidual).float()).view(dx.shape))


# ---------------------------------------------------------------- ops


@op(
    "rms_norm(Tensor x, Tensor? weight, Tensor? residual, float eps, float offset, bool cast, float scale, bool post,"
    " Tensor(a!) y, Tensor(b!)? h, Tensor(c!) rstd) -> ()",
    lambda *_: None,
)
def _rms_norm(x, weight, residual, eps, offset, cast, scale, post, y, h, rstd):
    if use_triton(x):
        _launch_forward(x, weight, residual, eps, offset, cast, scale, post, y, h, rstd, False)
    else:
        _forward_torch(x, weight, residual, eps, offset, cast, scale, post, y, h, rstd)


@op(
    "rms_norm_apply(Tensor x, Tensor? weight, Tensor rstd, float offset, bool cast, Tensor(a!) y) -> ()",
    lambda *_: None,
)
def _rms_norm_apply(x, weight, rstd, offset, cast, y):
    if use_triton(x):
        _launch_forward(x, weight, None, 0.0, offset, cast, 1.0, False, y, None, rstd, True)
    else:
        y.copy_(_apply_torch(rows(x), weight, rstd, offset, cast).view(y.shape))


@op(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, float offset, bool cast, Tensor? dresidual,"
    " Tensor(a!) dx, Tensor(b!)? dweight) -> ()",
    lambda *_: None,
)
def _rms_norm_backward(dy, x, weight, rstd, offset, cast, dresidual, dx, dweight):
    run = _launch_backward if use_triton(x) else _backward_torch
    run(dy, x, weight, rstd, offset, cast, dresidual, dx, dweight)


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
        x: `[..., H]`, any float dtype, rows at any stride (heads inside a packed projection too).
        weight: `[H]`, or None for a weightless norm.
        eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).
        cast_before_mul: round the normalised row to x's dtype before the weight (Llama) or after (Gemma).
        out: `[..., H]`, where y goes (may be a strided slice of a wider buffer, or x itself).

    Returns:
        y in x's dtype, and rstd `[rows]` in fp32 for the backward pass.
    """
    y, rstd = fresh(x) if out is None else out, row_stats(x)
    _rms_norm(x, weight, None, eps, offset, cast_before_mul, 1.0, False, y, None, rstd)
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
    """Add, then normalise: `h = residual + scale * x`, then RMSNorm of h, in one pass; all `[..., H]`.

    `scale` is Granite's residual multiplier. `out_residual` may be `residual` or `x` itself (in place).
    The backward pass of both is `rms_norm_backward(dy, h, ..., dresidual=dh)`: its result is the gradient of the
    residual, and (times `scale`) of x.

    Returns:
        y, h, rstd.
    """
    y, h, rstd = fresh(x) if out is None else out, fresh(x) if out_residual is None else out_residual, row_stats(x)
    _rms_norm(x, weight, residual, eps, offset, cast_before_mul, scale, False, y, h, rstd)
    return y, h, rstd


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
    """Normalise, then add: `residual + rms_norm(x)` (Gemma 2's and OLMo 2's post-norms), `[..., H]`.

    `out` may be `residual`.

    Returns:
        z in x's dtype, and rstd `[rows]` in fp32.
    """
    z, rstd = fresh(x) if out is None else out, row_stats(x)
    _rms_norm(x, weight, residual, eps, offset, cast_before_mul, 1.0, True, z, None, rstd)
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
    """Compute y again, from x and the saved rstd `[rows]`: the forward pass's bits. For blocks that do not keep y."""
    y = fresh(x) if out is None else out
    _rms_norm_apply(x, weight, rstd, offset, cast_before_mul, y)
    return y


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
    """Compute the gradient of `rms_norm`, `[..., H]`.

    Args:
        dy, x: `[..., H]`; x is what was normalised (h after a residual add).
        rstd: `[rows]` fp32, from the forward pass.
        need_dweight: also return the weight's gradient (deterministic: partial sums in a fixed order).
        dresidual: `[..., H]` added to dx (the gradient that reaches h past the norm).
        out: where dx goes; may be `dy` or `dresidual` itself.

    Returns:
        dx in x's dtype, dweight in weight's dtype or None.
    """
    dx = fresh(x) if out is None else out
    dweight = torch.empty_like(weight) if need_dweight and weight is not None else None
    _rms_norm_backward(dy, x, weight, rstd, offset, cast_before_mul, dresidual, dx, dweight)
    return dx, dweight
