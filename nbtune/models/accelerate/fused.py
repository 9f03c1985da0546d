"""Kernels that a whole block makes possible: a leaf op would have to read what another one has just written.

    act_backward_grads    dgate, dup in place, and the three LoRA gradients that need h, dgate, dup: read no more
    rotate_back           dq, dk, dv side by side as the next product wants them, q and k turned back on the way

Each returns None where it does not apply (no Triton, few rows, a large rank): the caller then goes by leaf ops, which
are also their references. Sums are in fp32 and in a fixed order: two runs give the same bits.
"""

import torch
from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, jit, next_power_of_2, tl, use_triton
from nbtune_kernels.activation import _act
from torch import Tensor

__all__ = ["act_backward_grads", "rotate_back"]

_MIN_ROWS = 2048  # below it a program a block of rows leaves most of the card idle
_MAX_RANK = 32
# rows and columns of a tile, warps, stages; measured on a Hopper card (docs/speed.md)
_ACT_BACKWARD = {"BT": 16, "BN": 128, "num_warps": 4, "num_stages": 3}
_SPLITS = 8  # slices of the rows whose partial sums are added afterwards


def _applies(x: Tensor, rank: int) -> bool:
    if x.is_cuda and (compute_capability(x.device) < 80 or x.shape[0] < _MIN_ROWS):
        return False  # before sm_80 `tl.dot` runs without tensor cores
    return use_triton(x) and 0 < rank <= _MAX_RANK


def _pad(rank: int) -> int:
    return max(16, next_power_of_2(rank))


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"


# ---------------------------------------------------------------- activation backward and LoRA gradients


@jit
def _act_backward_kernel(
    dh_ptr, g_ptr, u_ptr, dha_ptr, xg_ptr, xu_ptr, part_ptr, d_stride, g_stride, da_stride, x_stride,
    rows_per_split, n_rows, width, rank,
    ACT: tl.constexpr, PAD: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    t = tl.arange(0, BT)
    r = tl.arange(0, PAD)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    wide_enough = n[None, :] < width
    small = r[:, None] < rank
    acc_a = tl.zeros((PAD, BN), tl.float32)
    acc_g = tl.zeros((PAD, BN), tl.float32)
    acc_u = tl.zeros((PAD, BN), tl.float32)
    for start in range(first, last, BT):
        row = (start + t).to(tl.int64)
        live = row < last
        keep = live[:, None] & wide_enough
        at = row[:, None] * g_stride + n[None, :]
        g = tl.load(g_ptr + at, keep, other=0.0)
        up = tl.load(u_ptr + at, keep, other=0.0).to(tl.float32)
        dh = tl.load(dh_ptr + row[:, None] * d_stride + n[None, :], keep, other=0.0).to(tl.float32)
        value, slope = _act(g.to(tl.float32), ACT)
        dg = (dh * up * slope).to(g.dtype)
        du = (dh * value).to(g.dtype)
        h = (value * up).to(g.dtype)
        tl.store(g_ptr + at, dg, keep)
        tl.store(u_ptr + at, du, keep)
        beside = live[None, :] & small
        dha = tl.load(dha_ptr + row[None, :] * da_stride + r[:, None], beside, other=0.0)
        acc_a = tl.dot(dha, h, acc_a, input_precision=PRECISION)
        xg = tl.load(xg_ptr + row[None, :] * x_stride + r[:, None], beside, other=0.0)
        acc_g = tl.dot(xg, dg, acc_g, input_precision=PRECISION)
        xu = tl.load(xu_ptr + row[None, :] * x_stride + r[:, None], beside, other=0.0)
        acc_u = tl.dot(xu, du, acc_u, input_precision=PRECISION)
    at_part = (split.to(tl.int64) * 3 * rank + r[:, None]) * width + n[None, :]
    keep = small & wide_enough
    tl.store(part_ptr + at_part, acc_a, keep)
    tl.store(part_ptr + at_part + rank * width, acc_g, keep)
    tl.store(part_ptr + at_part + 2 * rank * width, acc_u, keep)


def act_backward_grads(
    dh: Tensor, gate: Tensor, up: Tensor, act: str, dha: Tensor, xa: Tensor, rank: int
) -> Tensor | None:
    """Overwrites gate and up with their gradients, and returns `[3, r, I]` fp32: dha' h, xa_gate' dgate, xa_up' dup.

    Args:
        dh, gate, up: `[T, I]`, gate and up at one pitch; dha: `[T, r]`; xa: `[T, 2 r]`, gate's and up's side by side.
    """
    if not _applies(gate, rank) or gate.stride(0) != up.stride(0):
        return None
    t, i = gate.shape
    pad = _pad(rank)
    tile = _ACT_BACKWARD if pad == 16 else {**_ACT_BACKWARD, "BN": 64}
    splits = max(1, min(_SPLITS, t // 512))
    per = cdiv(cdiv(t, splits), tile["BT"]) * tile["BT"]
    part = torch.empty((splits, 3, rank, i), dtype=torch.float32, device=gate.device)
    _act_backward_kernel[(cdiv(i, tile["BN"]), splits)](
        dh, gate, up, dha, xa, xa[:, rank:], part, dh.stride(0), gate.stride(0), dha.stride(0), xa.stride(0), per, t, i,
        rank, ACT=act, PAD=pad, PRECISION=_precision(gate), **FUSED, **tile,
    )  # fmt: skip
    return part.sum(0)


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
    """Fills `out [T, (Hq + 2 Hk) D]` from dq `[B, S, Hq, D]`, dk, dv `[B, S, Hk, D]`, the rotary of q and k undone.

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
