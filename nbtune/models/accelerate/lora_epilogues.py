"""LoRA's share of a product that could not take it along, added where the product is read next anyway.

An 8-bit product has no room for 16-bit columns. A pass of its own over what it has made (gate and up: 0.94 GB of an 8B
layer at 8,192 tokens) takes as long as reading it twice, so:

    act_with_lora    gate += xa_gate B_gate', up += xa_up B_up' in place, and h = act(gate) up, in one pass
    sum_with_lora    y = residual + c (y + xa B') in one pass

Sums are in fp32. Both are asked for where `triton_epilogues.applies`; their references are `addmm_` and what follows.
"""

from nbtune_kernels._runtime import FUSED, cdiv, jit, tl
from nbtune_kernels.activation import _act
from torch import Tensor

from nbtune.models.accelerate.triton_epilogues import pad_of, precision_of

# of the tiles tried on an H200 (docs/speed.md): 365 and 63 microseconds of 8,192 rows of an 8B layer
_ACT = {"BT": 64, "BN": 64, "num_warps": 4}
_SUM = {"BT": 64, "BN": 128, "num_warps": 8}


@jit
def _share(x_ptr, b_ptr, row, n, x_stride, b_stride, n_rows, width, rank, PAD: tl.constexpr, PRECISION: tl.constexpr):
    """Return x b' `[BT, BN]` in fp32."""
    r = tl.arange(0, PAD)
    live = (r < rank)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_stride + r[None, :], (row < n_rows)[:, None] & live, other=0.0)
    b = tl.load(b_ptr + n[:, None] * b_stride + r[None, :], (n < width)[:, None] & live, other=0.0)
    return tl.dot(x, tl.trans(b), input_precision=PRECISION)


@jit
def _act_kernel(
    g_ptr, u_ptr, xg_ptr, xu_ptr, bg_ptr, bu_ptr, h_ptr, g_stride, x_stride, b_stride, h_stride, n_rows, width, rank,
    ACT: tl.constexpr, PAD: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT)
    keep = (row < n_rows)[:, None] & (n < width)[None, :]
    at = row[:, None] * g_stride + n[None, :]
    kind = g_ptr.dtype.element_ty
    g = tl.load(g_ptr + at, keep, other=0.0).to(tl.float32)
    g = (g + _share(xg_ptr, bg_ptr, row, n, x_stride, b_stride, n_rows, width, rank, PAD, PRECISION)).to(kind)
    tl.store(g_ptr + at, g, keep)
    u = tl.load(u_ptr + at, keep, other=0.0).to(tl.float32)
    u = (u + _share(xu_ptr, bu_ptr, row, n, x_stride, b_stride, n_rows, width, rank, PAD, PRECISION)).to(kind)
    tl.store(u_ptr + at, u, keep)
    value, _slope = _act(g.to(tl.float32), ACT)  # of what the way back reads
    h = value * u.to(tl.float32)
    tl.store(h_ptr + row[:, None] * h_stride + n[None, :], h.to(kind), keep)


def act_with_lora(gate: Tensor, up: Tensor, xa: Tensor, beside: Tensor, act: str, out: Tensor) -> None:
    """Add LoRA's share to gate and up in place, and write act(gate) up into `out`.

    Args:
        gate, up: `[T, I]` at one pitch, the frozen product.
        xa: `[T, 2 r]`, gate's and up's side by side; beside: `[2 I, 2 r]`, whose diagonal blocks are theirs.
        out: `[T, I]`.
    """
    (t, i), rank = gate.shape, xa.shape[1] // 2
    _act_kernel[(cdiv(i, _ACT["BN"]), cdiv(t, _ACT["BT"]))](
        gate, up, xa, xa[:, rank:], beside, beside[i:, rank:], out, gate.stride(0), xa.stride(0), beside.stride(0),
        out.stride(0), t, i, rank, ACT=act, PAD=pad_of(rank), PRECISION=precision_of(gate), **FUSED, **_ACT,
    )  # fmt: skip


@jit
def _sum_kernel(
    y_ptr, res_ptr, x_ptr, b_ptr, y_stride, res_stride, x_stride, b_stride, n_rows, width, rank, scale,
    PAD: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT)
    keep = (row < n_rows)[:, None] & (n < width)[None, :]
    at = y_ptr + row[:, None] * y_stride + n[None, :]
    y = tl.load(at, keep, other=0.0).to(tl.float32)
    y += _share(x_ptr, b_ptr, row, n, x_stride, b_stride, n_rows, width, rank, PAD, PRECISION)
    y = tl.load(res_ptr + row[:, None] * res_stride + n[None, :], keep, other=0.0).to(tl.float32) + scale * y
    tl.store(at, y.to(y_ptr.dtype.element_ty), keep)


def sum_with_lora(residual: Tensor, y: Tensor, xa: Tensor, beside: Tensor, scale: float) -> Tensor:
    """Turn y `[T, O]`, the frozen product, into residual + scale (y + xa beside'), and return it.

    Args:
        xa: `[T, r]`; beside: `[O, r]`.
    """
    (t, o), rank = y.shape, xa.shape[1]
    _sum_kernel[(cdiv(o, _SUM["BN"]), cdiv(t, _SUM["BT"]))](
        y, residual, xa, beside, y.stride(0), residual.stride(0), xa.stride(0), beside.stride(0), t, o, rank,
        float(scale), PAD=pad_of(rank), PRECISION=precision_of(y), **FUSED, **_SUM,
    )  # fmt: skip
    return y
