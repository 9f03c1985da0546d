"""Kernels that a whole block makes possible: a leaf op would have to read what another one has just written.

    act_backward_grads    dgate, dup in place, and the three LoRA gradients that need h, dgate, dup: read no more
    rotate_back           dq, dk, dv side by side as the next product wants them, q and k turned back on the way

Each returns None where it does not apply (no Triton, few rows, a large rank): the caller then goes by leaf ops, which
are also their references. Sums are in fp32 and in a fixed order: two runs give the same bits.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from nbtune_kernels._runtime import (
    FUSED,
    INTERPRETED,
    cdiv,
    compute_capability,
    jit,
    next_power_of_2,
    processors,
    tl,
    use_triton,
)
from nbtune_kernels.activation import _act
from torch import Tensor

from nbtune.device.detect import rocm

_MIN_ROWS = 2048  # below it a program a block of rows leaves most of the card idle
_MAX_RANK = 32
# rows and columns of a tile, warps, stages; measured on a Hopper card (docs/speed.md)
_ACT_BACKWARD = {"BT": 16, "BN": 128, "num_warps": 4, "num_stages": 3}
_REGISTERS = 168  # a thread, so that three programs share a processor: faster than four of 128
_MOST_SPLITS = 14  # slices of the rows, whose partial sums are added afterwards
_NVIDIA = not INTERPRETED and not rocm()


def applies(x: Tensor, rank: int) -> bool:
    """Return whether kernels with products of that rank go over rows of x `[T, …]`."""
    if x.is_cuda and (compute_capability(x.device) < 80 or x.shape[0] < _MIN_ROWS):
        return False  # before sm_80 `tl.dot` runs without tensor cores
    return use_triton(x) and 0 < rank <= _MAX_RANK


def pad_of(rank: int) -> int:
    """Return the width of a tile for that rank."""
    return max(16, next_power_of_2(rank))


def precision_of(x: Tensor) -> str:
    """Return how `tl.dot` multiplies numbers of x's dtype."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


# ---------------------------------------------------------------- activation backward and LoRA gradients


@jit
def _sigmoid_once(x):
    """Compute it by the card's own exponential and reciprocal: 4 instructions for 11, to 1e-6.

    It is called impure, so that the compiler computes an activation once: it would rather do so twice, in the order in
    which it is stored and in that of the product, than pass it through shared memory (959 instructions for 438).
    """
    return tl.inline_asm_elementwise(
        "{ .reg .f32 t; mul.ftz.f32 t, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 t, t; add.ftz.f32 t, t, 0f3F800000;"
        " rcp.approx.ftz.f32 $0, t; }",
        "=f,f", [x], dtype=tl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@jit
def _once(x):
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=False, pack=1)


@jit
def _act_once(g, ACT: tl.constexpr, NVIDIA: tl.constexpr):
    """Return act(g) and act'(g) in fp32; see `_act`, whose arithmetic this is."""
    if not NVIDIA:
        a, slope = _act(g, ACT)
    elif ACT == "silu":
        s = _sigmoid_once(g)
        a = g * s
        slope = s + (a - a * s)
    elif ACT == "gelu_tanh":
        t = 2 * _sigmoid_once(1.5957691216057308 * (g + 0.044715 * g * g * g)) - 1
        a = 0.5 * g * (1 + t)
        slope = 0.5 * (1 + t) + 0.5 * g * (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * g * g)
    else:
        a, slope = _act(_once(g), ACT)
    return a, slope


@jit
def _beside(ptr, row, stride, r, last, rank):
    return tl.load(ptr + row[:, None] * stride + r[None, :], (row < last)[:, None] & (r < rank)[None, :], other=0.0)


@jit
def _act_backward_kernel(
    dh_ptr, g_ptr, u_ptr, dha_ptr, xg_ptr, xu_ptr, part_ptr, d_stride, g_stride, da_stride, x_stride,
    rows_per_split, n_rows, width, rank,
    ACT: tl.constexpr, NVIDIA: tl.constexpr, PAD: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    t = tl.arange(0, BT)
    r = tl.arange(0, PAD)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    wide_enough = n[None, :] < width
    acc_a = tl.zeros((PAD, BN), tl.float32)
    acc_g = tl.zeros((PAD, BN), tl.float32)
    acc_u = tl.zeros((PAD, BN), tl.float32)
    row = (first + t).to(tl.int64)
    dha = _beside(dha_ptr, row, da_stride, r, last, rank)
    xg = _beside(xg_ptr, row, x_stride, r, last, rank)
    xu = _beside(xu_ptr, row, x_stride, r, last, rank)
    for start in range(first, last, BT):
        row = (start + t).to(tl.int64)
        keep = (row < last)[:, None] & wide_enough
        at = row[:, None] * g_stride + n[None, :]
        g = tl.load(g_ptr + at, keep, other=0.0)
        up = tl.load(u_ptr + at, keep, other=0.0).to(tl.float32)
        dh = tl.load(dh_ptr + row[:, None] * d_stride + n[None, :], keep, other=0.0).to(tl.float32)
        # the small operands of the next round, which no pipeline fetches
        row += BT
        next_dha = _beside(dha_ptr, row, da_stride, r, last, rank)
        next_xg = _beside(xg_ptr, row, x_stride, r, last, rank)
        next_xu = _beside(xu_ptr, row, x_stride, r, last, rank)
        value, slope = _act_once(g.to(tl.float32), ACT, NVIDIA)
        dg = (dh * up * slope).to(g.dtype)
        du = (dh * value).to(g.dtype)
        h = (value * up).to(g.dtype)
        tl.store(g_ptr + at, dg, keep)
        tl.store(u_ptr + at, du, keep)
        acc_a = tl.dot(tl.trans(dha), h, acc_a, input_precision=PRECISION)
        acc_g = tl.dot(tl.trans(xg), dg, acc_g, input_precision=PRECISION)
        acc_u = tl.dot(tl.trans(xu), du, acc_u, input_precision=PRECISION)
        dha, xg, xu = next_dha, next_xg, next_xu
    at_part = (split.to(tl.int64) * 3 * rank + r[:, None]) * width + n[None, :]
    keep = (r < rank)[:, None] & wide_enough
    tl.store(part_ptr + at_part, acc_a, keep)
    tl.store(part_ptr + at_part + rank * width, acc_g, keep)
    tl.store(part_ptr + at_part + 2 * rank * width, acc_u, keep)


@jit
def _add_up_tile(
    part_ptr, out_ptr, r_stride, n_stride, scale, which, rank, width, splits,
    ADD: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    r = tl.arange(0, PAD)[:, None]
    mask = (r < rank) & (n < width)
    total = tl.zeros((PAD, BLOCK), tl.float32)
    for split in range(splits):
        total += tl.load(part_ptr + ((split * 3 + which) * rank + r) * width + n, mask, other=0.0)
    at = out_ptr + r * r_stride + n.to(tl.int64) * n_stride
    total *= scale
    if ADD:
        total += tl.load(at, mask, other=0.0).to(tl.float32)
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask)


@jit
def _add_up_kernel(
    part_ptr, q0, q1, q2, a0, a1, a2, c0, c1, c2, s0, s1, s2, rank, width, splits,
    ADD0: tl.constexpr, ADD1: tl.constexpr, ADD2: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1)
    if which == 0:
        _add_up_tile(part_ptr, q0, a0, c0, s0, 0, rank, width, splits, ADD0, PAD, BLOCK)
    elif which == 1:
        _add_up_tile(part_ptr, q1, a1, c1, s1, 1, rank, width, splits, ADD1, PAD, BLOCK)
    else:
        _add_up_tile(part_ptr, q2, a2, c2, s2, 2, rank, width, splits, ADD2, PAD, BLOCK)


@dataclass
class Partials:
    """Three sums `[r, I]` in slices, `[splits, 3, r, I]` fp32, that are added up when it is known where to."""

    part: Tensor
    _places: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def into(self, which: int, out: Tensor, scale: float, add: bool) -> None:
        """Write `out (+)= scale *` sum `which`, once all three have their places; `out` is `[r, I]`
        with any strides."""
        self._places[which] = (out, out.stride(0), out.stride(1), scale, add)
        if len(self._places) < 3:
            return
        outs, rows, columns, scales, adds = zip(*(self._places[i] for i in range(3)), strict=True)
        splits, _, rank, width = self.part.shape
        _add_up_kernel[(cdiv(width, 64), 3)](
            self.part, *outs, *rows, *columns, *scales, rank, width, splits, ADD0=adds[0], ADD1=adds[1],
            ADD2=adds[2], PAD=pad_of(rank), BLOCK=64, **FUSED, num_warps=4,
        )  # fmt: skip


def _splits(blocks: int, rows: int, together: int) -> int:
    """Return how many slices leave the fewest processors idle in the last wave; each costs a little by itself."""
    most = max(1, min(_MOST_SPLITS, rows // 512))
    return min(range(1, most + 1), key=lambda s: cdiv(blocks * s, together) * together / (blocks * s) + 0.005 * s)


def act_backward_grads(
    dh: Tensor, gate: Tensor, up: Tensor, act: str, dha: Tensor, xa: Tensor, rank: int
) -> Partials | None:
    """Overwrite gate and up with their gradients; the sums `[r, I]` are dha' h, xa_gate' dgate, xa_up' dup.

    Args:
        dh, gate, up: `[T, I]`, gate and up at one pitch; dha: `[T, r]`; xa: `[T, 2 r]`, gate's and up's side by side.
    """
    if not applies(gate, rank) or gate.stride(0) != up.stride(0):
        return None
    t, i = gate.shape
    pad = pad_of(rank)
    tile = _ACT_BACKWARD if pad == 16 else {**_ACT_BACKWARD, "BN": 64}
    blocks = cdiv(i, tile["BN"])
    splits = _splits(blocks, t, 65536 // (_REGISTERS * 32 * tile["num_warps"]) * processors(gate.device))
    per = cdiv(cdiv(t, splits), tile["BT"]) * tile["BT"]
    part = torch.empty((cdiv(t, per), 3, rank, i), dtype=torch.float32, device=gate.device)
    _act_backward_kernel[(blocks, part.shape[0])](
        dh, gate, up, dha, xa, xa[:, rank:], part, dh.stride(0), gate.stride(0), dha.stride(0), xa.stride(0), per, t, i,
        rank, ACT=act, NVIDIA=_NVIDIA, PAD=pad, PRECISION=precision_of(gate), **FUSED, **tile,
        **({"maxnreg": _REGISTERS} if _NVIDIA else {}),
    )  # fmt: skip
    return Partials(part)


# ---------------------------------------------------------------- dq, dk, dv


@jit
def _rotate_back_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, out_ptr, q_token, q_head, k_token, k_head, v_token, v_head, c_batch, c_token,
    out_stride, n_tokens, length, HQ: tl.constexpr, HK: tl.constexpr, HALF: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    head = tl.program_id(1)
    d = tl.arange(0, HALF)
    live = (token < n_tokens)[:, None]
    out_at = out_ptr + token[:, None] * out_stride + head * 2 * HALF + d[None, :]
    if head >= HQ + HK:
        at = v_ptr + token[:, None] * v_token + (head - HQ - HK) * v_head + d[None, :]
        tl.store(out_at, tl.load(at, live), live)
        tl.store(out_at + HALF, tl.load(at + HALF, live), live)
    else:
        if head >= HQ:
            at = k_ptr + token[:, None] * k_token + (head - HQ) * k_head + d[None, :]
        else:
            at = q_ptr + token[:, None] * q_token + head * q_head + d[None, :]
        angle = (token // length)[:, None] * c_batch + (token % length)[:, None] * c_token + d[None, :]
        c = tl.load(cos_ptr + angle, live, other=0.0).to(tl.float32)
        s = tl.load(sin_ptr + angle, live, other=0.0).to(tl.float32)
        a = tl.load(at, live, other=0.0).to(tl.float32)
        b = tl.load(at + HALF, live, other=0.0).to(tl.float32)
        tl.store(out_at, (a * c + b * s).to(out_ptr.dtype.element_ty), live)
        tl.store(out_at + HALF, (b * c - a * s).to(out_ptr.dtype.element_ty), live)


def rotate_back(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> bool:
    """Fill `out [T, (Hq + 2 Hk) D]` from dq `[B, S, Hq, D]`, dk, dv `[B, S, Hk, D]`, the rotary of q and k undone.

    False, and nothing done, where it does not apply.
    """
    b, s, hq, dim = dq.shape
    half = dim // 2
    uniform = all(t.stride(0) == s * t.stride(1) and t.stride(3) == 1 for t in (dq, dk, dv))
    if not use_triton(dq) or not uniform or cos.shape[-1] != dim or half & (half - 1) or cos.stride() != sin.stride():
        return False
    hk, block = dk.shape[2], 32
    _rotate_back_kernel[(cdiv(b * s, block), hq + 2 * hk)](
        dq, dk, dv, cos, sin, out, dq.stride(1), dq.stride(2), dk.stride(1), dk.stride(2), dv.stride(1), dv.stride(2),
        cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1), out.stride(0), b * s, s, HQ=hq, HK=hk, HALF=half,
        BT=block, **FUSED, num_warps=4,
    )  # fmt: skip
    return True
