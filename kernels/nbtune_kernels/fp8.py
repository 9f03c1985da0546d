"""8-bit floating point (e4m3) with one scale a row: quantise, transpose, and multiply.

    s_t = max_k |x_tk c_k| / 448        q_tk = e4m3(x_tk c_k / s_t)        y = (q s)(w z)'

A product of frozen weights `w z'` (z a scale an output row) then has both scales outside of its sum. On the way back
the sum runs over the output rows: their scales go into dy as c before it is quantised, and the weights are needed
transposed, because Hopper's 8-bit products read both operands along the sum.
Micikevicius et al. 2022, "FP8 formats for deep learning" (arXiv 2209.05433).
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, flat_rows, jit, next_power_of_2, op, tl, use_triton

LARGEST = 448.0  # of e4m3
_TILE = 64
_BLOCK = 4096
_READS = 89  # the oldest GPU that reads e4m3 by itself


def reference(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Do what `quantise_rows` does, in plain torch: e4m3 `[T, K]` and fp32 `[T]`."""
    value = x.float() if columns is None else x.float() * columns
    top = value.abs().amax(-1)
    scale = torch.where(top > 0, top / LARGEST, torch.ones_like(top))
    return (value / scale[:, None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


@jit
def _quantise_kernel(x_ptr, columns_ptr, q_ptr, scale_ptr, width, stride, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + at, at < width, other=0.0).to(tl.float32)
    if COLUMNS:
        x *= tl.load(columns_ptr + at, at < width, other=0.0)
    top = tl.max(tl.abs(x), 0)
    scale = tl.where(top > 0, top / 448.0, 1.0)
    tl.store(scale_ptr + row, scale)
    q = tl.minimum(tl.maximum(x / scale, -448.0), 448.0)
    tl.store(q_ptr + row * width + at, q.to(q_ptr.dtype.element_ty), at < width)


@jit
def _transpose_kernel(x_ptr, out_ptr, rows, columns, TILE: tl.constexpr):
    """Move bytes: what they mean does not matter."""
    r = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    c = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + r[:, None] * columns + c[None, :], (r[:, None] < rows) & (c[None, :] < columns), other=0)
    tl.store(out_ptr + c[:, None] * rows + r[None, :], tl.trans(x), (c[:, None] < columns) & (r[None, :] < rows))


@jit
def _decode_kernel(q_ptr, scale_ptr, out_ptr, count, width, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    x = tl.load(q_ptr + at, live).to(tl.float32) * tl.load(scale_ptr + at // width, live)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), live)


@op("fp8_quantise(Tensor x, Tensor? columns, Tensor(a!) q, Tensor(b!) scale) -> ()", lambda *_: None)
def _quantise(x, columns, q, scale):
    if not (use_triton(x) and x.is_cuda):  # the interpreter has no 8-bit rounding of its own
        made, scales = reference(x, columns)
        q.copy_(made)
        scale.copy_(scales)
        return
    width = x.shape[1]
    block = next_power_of_2(width)
    _quantise_kernel[(x.shape[0],)](
        x, x if columns is None else columns, q, scale, width, x.stride(0), COLUMNS=columns is not None, BLOCK=block,
        **FUSED, num_warps=min(16, max(4, block // 1024)),
    )  # fmt: skip


@op("fp8_transpose(Tensor x, Tensor(a!) out) -> ()", lambda *_: None)
def _transpose(x, out):
    if not use_triton(x):
        out.view(torch.uint8).copy_(x.view(torch.uint8).t())
        return
    rows, columns = x.shape
    _transpose_kernel[(cdiv(columns, _TILE), cdiv(rows, _TILE))](
        x.view(torch.uint8), out.view(torch.uint8), rows, columns, TILE=_TILE, **FUSED, num_warps=4
    )


@op("fp8_decode(Tensor q, Tensor scale, Tensor(a!) out) -> ()", lambda *_: None)
def _decode(q, scale, out):
    if not (use_triton(q) and q.is_cuda and compute_capability(q.device) >= _READS and out.is_contiguous()):
        out.copy_(q).mul_(scale[..., None])
        return
    _decode_kernel[(cdiv(q.numel(), _BLOCK),)](
        q, scale, out, q.numel(), q.shape[-1], BLOCK=_BLOCK, **FUSED, num_warps=8
    )  # fmt: skip


def decode_rows(q: Tensor, scale: Tensor, out: Tensor) -> None:
    """Write what `quantise_rows` has rounded to `out [..., K]`, in its dtype: each product is rounded once.

    Args:
        q: e4m3 `[..., K]`, contiguous; scale: fp32 `[...]`, contiguous.
    """
    _decode(q, scale, out)


def quantise_rows(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round x, times a factor for each column, to 8-bit numbers with a scale for each row.

    Args:
        x: `[T, K]`, unit inner stride.
        columns: fp32 `[K]`.

    Returns:
        q: e4m3 `[T, K]`; scale: fp32 `[T]`, 1 for a row of zeros.
    """
    x = flat_rows(x)
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    _quantise(x, columns, q, scale)
    return q, scale


def transposed(x: Tensor, out: Tensor) -> Tensor:
    """Write x' into `out`; x: one-byte numbers `[O, K]`, contiguous; out: `[K, O]`, contiguous."""
    _transpose(x, out)
    return out


def scaled_product(
    q: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """Multiply: (q scale)(weight weight_scale)' + bias, `[T, O]` in dtype; the sum is in fp32.

    Args:
        q: e4m3 `[T, K]`; scale: fp32 `[T]`.
        weight: e4m3 `[O, K]`; weight_scale: fp32 `[O]`. On a GPU K and O are multiples of 16.
        dtype: of the result.
        bias: `[O]` in dtype.
    """
    if q.is_cuda:
        added = None if dtype == torch.float32 else bias  # cuBLAS adds one to 16-bit results alone
        y = torch._scaled_mm(
            q, weight.t(), scale_a=scale[:, None], scale_b=weight_scale[None], bias=added, out_dtype=dtype,
            use_fast_accum=True,
        )  # fmt: skip
        return y if bias is None or added is not None else y.add_(bias)
    y = (q.float() * scale[:, None]) @ (weight.float() * weight_scale[:, None]).t()
    return (y if bias is None else y + bias).to(dtype)
