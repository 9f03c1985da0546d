"""Triton kernels of lora.py: a wide operand is streamed once through `tl.dot` against a skinny one.

    xa:   [T, H] x [H, R]         a program owns BLOCK_T rows, walks H
    dxa:  [T, O_i] x [O_i, r_i]   a program owns BLOCK_T rows of one group i, walks O_i
    tn:   [r_i, T] x [T, N_i]     a program owns BLOCK_N columns of one group and one slice of T; partial sums in fp32
                                  are added in slice order by a second launch: the same bits each time

Groups are branches of one launch, each with its own pointers, so that the compiler keeps what it knows about their
alignment. Skinny dimensions are padded to a power of two of at least 16.
"""
# ruff: noqa: SIM102  (the outer condition is known when a kernel is compiled, the inner one is not)

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, jit, next_power_of_2, processors, tl
from nbtune_kernels.tables import launch, stages_for

GROUPS = 4


def _pad(rank: int) -> int:
    return max(16, next_power_of_2(rank))


@jit
def _row_product(
    x_ptr, w_ptr, out_ptr, also_ptr, x_stride, w_row, w_col, out_stride, also_stride, pid_t, n_rows, width,
    rank, scale,
    PAD: tl.constexpr, ALSO: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute `out[t, :rank] = scale * sum_k x[t, k] w[k, :rank]` for BLOCK_T rows; w is addressed by (k, r) strides.

    ALSO: and the same to `also`.
    """
    row = pid_t.to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.arange(0, PAD)
    k = tl.arange(0, BLOCK_K)
    x_at = x_ptr + row[:, None] * x_stride + k[None, :]
    w_at = w_ptr + k[:, None] * w_row + r[None, :] * w_col
    live = row[:, None] < n_rows
    acc = tl.zeros((BLOCK_T, PAD), tl.float32)
    for start in range(0, width, BLOCK_K):
        left = width - start
        x = tl.load(x_at, live & (k[None, :] < left), other=0.0)
        w = tl.load(w_at, (k[:, None] < left) & (r[None, :] < rank), other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_at += BLOCK_K
        w_at += BLOCK_K * w_row
    acc *= scale
    live &= r[None, :] < rank
    tl.store(out_ptr + row[:, None] * out_stride + r[None, :], acc.to(out_ptr.dtype.element_ty), live)
    if ALSO:
        tl.store(also_ptr + row[:, None] * also_stride + r[None, :], acc.to(also_ptr.dtype.element_ty), live)


@jit
def _xa_kernel(
    x_ptr, a_ptr, out_ptr, also_ptr, x_stride, a_stride, out_stride, also_stride, n_rows, width, rank,
    PAD: tl.constexpr, ALSO: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    _row_product(
        x_ptr, a_ptr, out_ptr, also_ptr, x_stride, 1, a_stride, out_stride, also_stride, tl.program_id(0),
        n_rows, width, rank, 1.0, PAD, ALSO, BLOCK_T, BLOCK_K, PRECISION,
    )  # fmt: skip


@jit
def _dxa_kernel(
    y0, y1, y2, y3, b0, b1, b2, b3, out_ptr, ys0, ys1, ys2, ys3, bs0, bs1, bs2, bs3, out_stride,
    w0, w1, w2, w3, r0, r1, r2, r3, s0, s1, s2, s3, n_rows,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, N: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = tl.num_programs(0) // N  # all of one group before the next: the widest usually comes first
    group = tl.program_id(0) // tiles
    pid = tl.program_id(0) % tiles
    if group == 0:
        _row_product(
            y0, b0, out_ptr, out_ptr, ys0, bs0, 1, out_stride, 0, pid, n_rows, w0, r0, s0, P0, False,
            BLOCK_T, BLOCK_K, PRECISION,
        )  # fmt: skip
    if N > 1:
        if group == 1:
            o1 = out_ptr + r0
            _row_product(
                y1, b1, o1, o1, ys1, bs1, 1, out_stride, 0, pid, n_rows, w1, r1, s1, P1, False,
                BLOCK_T, BLOCK_K, PRECISION,
            )  # fmt: skip
    if N > 2:
        if group == 2:
            o2 = out_ptr + r0 + r1
            _row_product(
                y2, b2, o2, o2, ys2, bs2, 1, out_stride, 0, pid, n_rows, w2, r2, s2, P2, False,
                BLOCK_T, BLOCK_K, PRECISION,
            )  # fmt: skip
    if N > 3:
        if group == 3:
            o3 = out_ptr + r0 + r1 + r2
            _row_product(
                y3, b3, o3, o3, ys3, bs3, 1, out_stride, 0, pid, n_rows, w3, r3, s3, P3, False,
                BLOCK_T, BLOCK_K, PRECISION,
            )  # fmt: skip


@jit
def _tn_tile(
    u_ptr, v_ptr, part_ptr, u_stride, v_stride, block, split, rows_per_split, n_rows, width, rank,
    PAD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the partial `u^T v` of BLOCK_N columns over one slice of rows to `part[split, rank, width]`."""
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, PAD)
    t = tl.arange(0, BLOCK_T)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    row = first.to(tl.int64) + t
    u_at = u_ptr + row[None, :] * u_stride + r[:, None]
    v_at = v_ptr + row[:, None] * v_stride + n[None, :]
    acc = tl.zeros((PAD, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_T):
        left = last - start
        u = tl.load(u_at, (t[None, :] < left) & (r[:, None] < rank), other=0.0)
        v = tl.load(v_at, (t[:, None] < left) & (n[None, :] < width), other=0.0)
        acc = tl.dot(u, v, acc, input_precision=PRECISION)
        u_at += BLOCK_T * u_stride
        v_at += BLOCK_T * v_stride
    at = (split * rank + r[:, None]) * width + n[None, :]
    tl.store(part_ptr + at, acc, (r[:, None] < rank) & (n[None, :] < width))


@jit
def _tn_kernel(
    u0, u1, u2, u3, v0, v1, v2, v3, part_ptr, us0, us1, us2, us3, vs0, vs1, vs2, vs3, n0, n1, n2, n3, r0, r1, r2, r3,
    o1, o2, o3, e0, e1, e2, rows_per_split, n_rows,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, N: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Run programs (block, split); blocks below e0 belong to group 0, below e1 to group 1, ...; o1.. are part
    offsets."""
    block = tl.program_id(0)
    split = tl.program_id(1)
    if block < e0:
        _tn_tile(
            u0, v0, part_ptr, us0, vs0, block, split, rows_per_split, n_rows, n0, r0, P0, BLOCK_T, BLOCK_N, PRECISION
        )
    if N > 1:
        if (block >= e0) & (block < e1):
            _tn_tile(
                u1, v1, part_ptr + o1, us1, vs1, block - e0, split, rows_per_split, n_rows, n1, r1,
                P1, BLOCK_T, BLOCK_N, PRECISION,
            )  # fmt: skip
    if N > 2:
        if (block >= e1) & (block < e2):
            _tn_tile(
                u2, v2, part_ptr + o2, us2, vs2, block - e1, split, rows_per_split, n_rows, n2, r2,
                P2, BLOCK_T, BLOCK_N, PRECISION,
            )  # fmt: skip
    if N > 3:
        if block >= e2:
            _tn_tile(
                u3, v3, part_ptr + o3, us3, vs3, block - e2, split, rows_per_split, n_rows, n3, r3,
                P3, BLOCK_T, BLOCK_N, PRECISION,
            )  # fmt: skip


@jit
def _sum_tile(
    part_ptr, out_ptr, column_ptr, r_stride, n_stride, scale, block, rank, width, splits,
    PAD: tl.constexpr, ADD: tl.constexpr, COLUMN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write `out[r, n] (+)= scale * column[n] * sum over splits` for BLOCK columns; the strides say how `out` lies."""
    n = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    r = tl.arange(0, PAD)[:, None]
    mask = (r < rank) & (n < width)
    total = tl.zeros((PAD, BLOCK), tl.float32)
    for split in range(splits):
        total += tl.load(part_ptr + (split * rank + r) * width + n, mask, other=0.0)
    total *= scale
    if COLUMN:
        total *= tl.load(column_ptr + n, n < width, other=0.0)
    at = out_ptr + r * r_stride + n.to(tl.int64) * n_stride
    if ADD:
        total += tl.load(at, mask, other=0.0).to(tl.float32)
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask)


@jit
def _sum_kernel(
    part_ptr, q0, q1, q2, q3, k0, k1, k2, k3, a0, a1, a2, a3, c0, c1, c2, c3, s0, s1, s2, s3, n0, n1, n2, n3,
    r0, r1, r2, r3, o1, o2, o3, e0, e1, e2, splits,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, N: tl.constexpr, ADD: tl.constexpr,
    K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    if block < e0:
        _sum_tile(part_ptr, q0, k0, a0, c0, s0, block, r0, n0, splits, P0, ADD, K0, BLOCK)
    if N > 1:
        if (block >= e0) & (block < e1):
            _sum_tile(part_ptr + o1, q1, k1, a1, c1, s1, block - e0, r1, n1, splits, P1, ADD, K1, BLOCK)
    if N > 2:
        if (block >= e1) & (block < e2):
            _sum_tile(part_ptr + o2, q2, k2, a2, c2, s2, block - e1, r2, n2, splits, P2, ADD, K2, BLOCK)
    if N > 3:
        if block >= e2:
            _sum_tile(part_ptr + o3, q3, k3, a3, c3, s3, block - e2, r3, n3, splits, P3, ADD, K3, BLOCK)


def _precision(x: Tensor) -> str:
    """Return how `tl.dot` multiplies: fp32 operands (the interpreter, tests) as fp32, not as tf32."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def _four(values: Sequence) -> list:
    return [*values, *[values[-1]] * (GROUPS - len(values))]


def launch_xa(x: Tensor, a: Tensor, out: Tensor, also: Tensor | None = None) -> None:
    """Compute `out [T, R] = x [T, H] @ a [R, H]^T`, and write the same to `also`."""
    capability = compute_capability(x.device)
    table = launch("lora_xa", capability)
    n, rank = x.shape[0], a.shape[0]
    size = table["block_k"] * (table["block_t"] + _pad(rank)) * x.element_size()
    _xa_kernel[(cdiv(n, table["block_t"]),)](
        x, a, out, out if also is None else also, x.stride(0), a.stride(0), out.stride(0),
        0 if also is None else also.stride(0), n, x.shape[1], rank, PAD=_pad(rank), ALSO=also is not None,
        BLOCK_T=table["block_t"], BLOCK_K=table["block_k"], PRECISION=_precision(x), **FUSED, num_warps=table["warps"],
        num_stages=stages_for("lora_xa", capability, size),
    )  # fmt: skip


def launch_dxa(dys: Sequence[Tensor], bs: Sequence[Tensor], scalings: Sequence[float], out: Tensor) -> None:
    """Compute `out [T, R]`: `scalings[i] * dys[i] [T, O_i] @ bs[i] [O_i, r_i]` side by side."""
    capability = compute_capability(out.device)
    table = launch("lora_dxa", capability)
    bs = [b if b.stride(1) == 1 else b.contiguous() for b in bs]
    n, groups = out.shape[0], len(dys)
    ranks = [b.shape[1] for b in bs]
    pads = _four([_pad(r) for r in ranks])
    size = table["block_k"] * (table["block_t"] + max(pads)) * out.element_size()
    _dxa_kernel[(cdiv(n, table["block_t"]) * groups,)](
        *_four(dys), *_four(bs), out, *_four([d.stride(0) for d in dys]), *_four([b.stride(0) for b in bs]),
        out.stride(0), *_four([d.shape[1] for d in dys]), *_four(ranks), *_four(scalings), n,
        P0=pads[0], P1=pads[1], P2=pads[2], P3=pads[3], N=groups,
        BLOCK_T=table["block_t"], BLOCK_K=table["block_k"],
        PRECISION=_precision(dys[0]), **FUSED, num_warps=table["warps"],
        num_stages=stages_for("lora_dxa", capability, size),
    )  # fmt: skip


class _Plan(NamedTuple):
    """How a grouped product is cut: see `_tn_kernel` and `_sum_kernel` for what the four-tuples mean."""

    ranks: tuple[int, ...]
    widths: tuple[int, ...]
    pads: tuple[int, ...]
    blocks: int
    ends: tuple[int, ...]
    rows_per_split: int
    splits: int
    offsets: tuple[int, ...]
    size: int
    sum_blocks: int
    sum_ends: tuple[int, ...]


_SUM_BLOCK = 64


@functools.lru_cache(maxsize=1024)
def _plan(
    n_rows: int, ranks: tuple[int, ...], widths: tuple[int, ...], block_t: int, block_n: int, programs: int
) -> _Plan:
    def ends(sizes: list[int]) -> tuple[int, ...]:
        return tuple(_four(list(itertools.accumulate(sizes))))

    blocks = [cdiv(w, block_n) for w in widths]
    wanted = min(max(1, programs // sum(blocks)), cdiv(n_rows, block_t))
    rows_per_split = cdiv(cdiv(n_rows, wanted), block_t) * block_t
    splits = max(1, cdiv(n_rows, rows_per_split))
    offsets = ends([splits * r * w for r, w in zip(ranks, widths, strict=True)])
    sums = ends([cdiv(w, _SUM_BLOCK) for w in widths])
    return _Plan(
        tuple(_four(ranks)), tuple(_four(widths)), tuple(_four([_pad(r) for r in ranks])), sum(blocks),
        ends(blocks)[:3], rows_per_split, splits, offsets[:3], offsets[-1], sums[-1], sums[:3],
    )  # fmt: skip


def launch_tn(
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    scales: Sequence[float],
    outs: Sequence[Tensor],
    transposed: Sequence[bool],
    accumulate: bool,
    columns: Sequence[Tensor | None] = (None,) * GROUPS,
) -> None:
    """Compute `outs[i] = scales[i] * us[i]^T vs[i] * columns[i]`, or its transpose, for at most `GROUPS` groups."""
    device, n_rows, groups = vs[0].device, vs[0].shape[0], len(vs)
    capability = compute_capability(device)
    table = launch("grouped_tn", capability)
    ranks = [u.shape[1] for u in us]
    block_t, block_n = table["block_t"], min(table["block_n"], 16384 // _pad(max(ranks)))  # sums stay in registers
    plan = _plan(
        n_rows, tuple(ranks), tuple([v.shape[1] for v in vs]), block_t, block_n,
        table["programs_per_sm"] * processors(device),
    )  # fmt: skip
    size = block_t * (block_n + max(plan.pads)) * vs[0].element_size()
    part = torch.empty(plan.size, dtype=torch.float32, device=device)
    pads = dict(zip(("P0", "P1", "P2", "P3"), plan.pads, strict=True))
    _tn_kernel[(plan.blocks, plan.splits)](
        *_four(us), *_four(vs), part, *_four([u.stride(0) for u in us]), *_four([v.stride(0) for v in vs]),
        *plan.widths, *plan.ranks, *plan.offsets, *plan.ends, plan.rows_per_split, n_rows, **pads, N=groups,
        BLOCK_T=block_t, BLOCK_N=block_n, PRECISION=_precision(vs[0]), **FUSED, num_warps=table["warps"],
        num_stages=stages_for("grouped_tn", capability, size),
    )  # fmt: skip
    strides = [o.stride()[::-1] if t else o.stride() for o, t in zip(outs, transposed, strict=True)]
    scaled = {f"K{i}": i < groups and columns[i] is not None for i in range(GROUPS)}
    _sum_kernel[(plan.sum_blocks,)](
        part, *_four(outs), *_four([part if c is None else c for c in columns[:groups]]),
        *_four([s[0] for s in strides]), *_four([s[1] for s in strides]), *_four(scales),
        *plan.widths, *plan.ranks, *plan.offsets, *plan.sum_ends, plan.splits, **pads, **scaled, N=groups,
        ADD=accumulate, BLOCK=_SUM_BLOCK, **FUSED, num_warps=4,
    )  # fmt: skip
