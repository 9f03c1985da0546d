"""Triton kernels of grouped.py: products of rows that lie sorted by group with the matrix of their group.

    rows:   out[i] = x[source(i)] W_g^T + xa[i] B_g^T     a program owns BM rows of one group and BN columns, walks K
    sums:   out_g[r] = sum over i of group g of u[i, r] v[source(i)]     a program owns one group and BN columns

Where rows of a group begin and end is only known on the device: `tiles` says which group each block of rows is of.
A launch has a program for as many blocks as there can be; those that there are not end at once.
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, jit, next_power_of_2, tl
from nbtune_kernels.activation import _act
from nbtune_kernels.tables import SHARED, launch


@jit
def _tiles_kernel(ends_ptr, tiles_ptr, groups, most, BM: tl.constexpr, PAD: tl.constexpr):
    """Write which group each block of rows is of, and its first row; groups beside the last write what there is not."""
    mine = tl.program_id(0)
    g = tl.arange(0, PAD)
    end = tl.load(ends_ptr + g, g < groups, other=0)
    begin = tl.load(ends_ptr + g - 1, (g < groups) & (g > 0), other=0)
    tiles = tl.where(g < groups, (end - begin + BM - 1) // BM, 0)
    first = tl.sum(tl.where(g < mine, tiles, 0), 0)
    count = tl.sum(tl.where(g == mine, tiles, 0), 0)
    row = tl.sum(tl.where(g == mine, begin, 0), 0)
    group = mine
    if mine == groups:  # behind all: what is left of the table
        count = most - first
        group = -1
    for t in range(count):
        tl.store(tiles_ptr + first + t, group)
        tl.store(tiles_ptr + most + first + t, row + t * BM)


@jit
def _rows_kernel(
    x_ptr, w_ptr, out_ptr, xa_ptr, b_ptr, source_ptr, tiles_ptr, ends_ptr, x_stride, w_group, w_row, w_col, out_stride,
    xa_stride, b_group, b_row, b_col, columns, width, rank, blocks, most,
    GATHER: tl.constexpr, PAD: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    group = tl.load(tiles_ptr + tile)
    if group < 0:
        return
    first = tl.load(tiles_ptr + most + tile)
    end = tl.load(ends_ptr + group)
    row = first + tl.arange(0, BM)
    live = row < end
    row = tl.where(live, row, first).to(tl.int64)
    source = row
    if GATHER:
        source = tl.load(source_ptr + row).to(tl.int64)
    n = block * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    group = group.to(tl.int64)
    acc = tl.zeros((BM, BN), tl.float32)
    if PAD > 0:
        r = tl.arange(0, PAD)
        u = tl.load(xa_ptr + row[:, None] * xa_stride + r[None, :], r[None, :] < rank, other=0.0)
        b_at = b_ptr + group * b_group + n[None, :] * b_row + r[:, None] * b_col
        v = tl.load(b_at, (r[:, None] < rank) & (n[None, :] < columns), other=0.0)
        acc = tl.dot(u, v, acc, input_precision=PRECISION)
    x_at = x_ptr + source[:, None] * x_stride + k[None, :]
    w_at = w_ptr + group * w_group + n[None, :] * w_row + k[:, None] * w_col
    for start in range(0, width, BK):
        if EVEN_K:
            x = tl.load(x_at)
            if EVEN_N:
                w = tl.load(w_at)
            else:
                w = tl.load(w_at, n[None, :] < columns, other=0.0)
        else:
            left = width - start
            x = tl.load(x_at, k[None, :] < left, other=0.0)
            w = tl.load(w_at, (k[:, None] < left) & (n[None, :] < columns), other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_at += BK
        w_at += BK * w_col
    at = out_ptr + row[:, None] * out_stride + n[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), live[:, None] & (n[None, :] < columns))


@jit
def _sums_kernel(
    u_ptr, v_ptr, out_ptr, source_ptr, ends_ptr, u_stride, v_stride, out_group, r_stride, n_stride, rank, columns,
    blocks, scale,
    GATHER: tl.constexpr, ADD: tl.constexpr, PAD: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) // blocks
    n = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    r = tl.arange(0, PAD)
    t = tl.arange(0, BT)
    end = tl.load(ends_ptr + group)
    begin = tl.load(ends_ptr + group - 1, group > 0, other=0)
    acc = tl.zeros((PAD, BN), tl.float32)
    for start in range(begin, end, BT):
        row = (start + t).to(tl.int64)
        live = row < end
        source = row
        if GATHER:
            source = tl.load(source_ptr + row, live, other=0).to(tl.int64)
        u = tl.load(u_ptr + row[None, :] * u_stride + r[:, None], live[None, :] & (r[:, None] < rank), other=0.0)
        v_at = v_ptr + source[:, None] * v_stride + n[None, :]
        v = tl.load(v_at, live[:, None] & (n[None, :] < columns), other=0.0)
        acc = tl.dot(u, v, acc, input_precision=PRECISION)
    at = out_ptr + group.to(tl.int64) * out_group + r[:, None] * r_stride + n[None, :].to(tl.int64) * n_stride
    kept = (r[:, None] < rank) & (n[None, :] < columns)
    acc *= scale
    if ADD:
        acc += tl.load(at, kept, other=0.0).to(tl.float32)
    tl.store(at, acc.to(out_ptr.dtype.element_ty), kept)


@jit
def _turn_kernel(b_ptr, out_ptr, rows, rank, groups, scale, PAD: tl.constexpr, GROUPS: tl.constexpr):
    """Write row n of every group's matrix: `out[g, n, r] = scale * b[n, r, g]`."""
    n = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, PAD)[:, None]
    g = tl.arange(0, GROUPS)[None, :]
    kept = (r < rank) & (g < groups)
    b = tl.load(b_ptr + n * rank * groups + r * groups + g, kept, other=0.0) * scale
    tl.store(out_ptr + (g.to(tl.int64) * rows + n) * rank + r, b.to(out_ptr.dtype.element_ty), kept)


@jit
def _combine_kernel(
    y_ptr, back_ptr, weight_ptr, out_ptr, y_stride, out_stride, columns, chosen,
    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for j in range(chosen):
        row = tl.load(back_ptr + token * chosen + j).to(tl.int64)
        y = tl.load(y_ptr + row * y_stride + n, n < columns, other=0.0).to(tl.float32)
        if WEIGHTED:
            y *= tl.load(weight_ptr + token * chosen + j).to(tl.float32)
        acc += y
    tl.store(out_ptr + token * out_stride + n, acc.to(out_ptr.dtype.element_ty), n < columns)


@jit
def _gate_backward_kernel(
    dh_ptr, gate_ptr, up_ptr, weight_ptr, dot_ptr, h_ptr, dgate_ptr, dup_ptr, d_stride, g_stride, u_stride, h_stride,
    dg_stride, du_stride, width, ACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(weight_ptr + row).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        n = start + tl.arange(0, BLOCK)
        mask = n < width
        a, slope = _act(tl.load(gate_ptr + row * g_stride + n, mask, other=0.0).to(tl.float32), ACT)
        up = tl.load(up_ptr + row * u_stride + n, mask, other=0.0).to(tl.float32)
        dh = tl.load(dh_ptr + row * d_stride + n, mask, other=0.0).to(tl.float32)
        total += dh * a * up
        dh *= weight
        tl.store(h_ptr + row * h_stride + n, (a * up).to(h_ptr.dtype.element_ty), mask)
        tl.store(dgate_ptr + row * dg_stride + n, (dh * slope * up).to(dgate_ptr.dtype.element_ty), mask)
        tl.store(dup_ptr + row * du_stride + n, (dh * a).to(dup_ptr.dtype.element_ty), mask)
    tl.store(dot_ptr + row, tl.sum(total, 0))


def _precision(x: Tensor) -> str:
    """Return how `tl.dot` multiplies: fp32 operands (the interpreter, tests) as fp32, not as tf32."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def _pad(rank: int) -> int:
    return max(16, next_power_of_2(rank))


def _stages(table: dict, capability: int, size: int) -> int:
    """Return as many stages, each of so many bytes, as the table says and the card holds."""
    if not capability:
        return 1
    known = [arch for arch in SHARED if arch <= capability]
    room = 1000 * SHARED[max(known)] if known else 48_000
    return max(1, min(table["stages"], room // max(1, size)))


def most_tiles(rows: int, groups: int, block: int) -> int:
    """Return how many blocks of rows there can be: each group may begin a block that it does not fill."""
    return min(rows, rows // block + groups)


def launch_tiles(ends: Tensor, rows: int, block: int) -> Tensor:
    """Return `[2, most]`: of which group each block of rows is (-1: of none), and its first row."""
    groups = len(ends)
    most = most_tiles(rows, groups, block)
    out = torch.empty((2, most), dtype=torch.int32, device=ends.device)
    pad = max(2, next_power_of_2(groups))
    _tiles_kernel[(groups + 1,)](ends, out, groups, most, BM=block, PAD=pad, **FUSED, num_warps=1)
    return out


def launch_rows(
    x: Tensor, w: Tensor, groups: tuple[Tensor, Tensor], source: Tensor | None, lora: tuple[Tensor, Tensor] | None,
    out: Tensor, table: dict | None = None,
) -> None:  # fmt: skip
    """Compute `out [S, N] = x[source] w_g^T + xa b_g^T`; w `[E, N, K]` and b `[E, N, r]` at any strides.

    `groups`: where they end, and of which each block of rows is. `lora`: xa and b.
    """
    ends, tiles = groups
    capability = compute_capability(x.device)
    columns, width = w.shape[1:]
    name = "grouped_rows" if columns > 64 else "grouped_rows_skinny"
    table = table or launch(name, capability)
    bn, bk = min(table["block_n"], _pad(columns)), table["block_k"]
    blocks = cdiv(columns, bn)
    xa, b = (x, w) if lora is None else lora
    rank = 0 if lora is None else b.shape[2]
    size = bk * (table["block_m"] + bn) * x.element_size()
    _rows_kernel[(tiles.shape[1] * blocks,)](
        x, w, out, xa, b, ends if source is None else source, tiles, ends, x.stride(0), *w.stride(), out.stride(0),
        xa.stride(0), *b.stride(), columns, width, rank, blocks, tiles.shape[1],
        GATHER=source is not None, PAD=_pad(rank) if rank else 0, EVEN_N=columns % bn == 0, EVEN_K=width % bk == 0,
        BM=table["block_m"], BN=bn, BK=bk, PRECISION=_precision(x), **FUSED, num_warps=table["warps"],
        num_stages=_stages(table, capability, size),
    )  # fmt: skip


def launch_sums(
    u: Tensor, v: Tensor, ends: Tensor, source: Tensor | None, scale: float, out: Tensor, add: bool = False,
    table: dict | None = None,
) -> None:  # fmt: skip
    """Compute `out [E, r, N] (+)= scale * sum of u [S, r]^T v[source] [S, N]` by groups; out at any strides."""
    capability = compute_capability(v.device)
    table = table or launch("grouped_sums", capability)
    rank, columns = u.shape[1], v.shape[1]
    blocks = cdiv(columns, table["block_n"])
    size = table["block_t"] * (_pad(rank) + table["block_n"]) * v.element_size()
    _sums_kernel[(len(ends) * blocks,)](
        u, v, out, ends if source is None else source, ends, u.stride(0), v.stride(0), *out.stride(), rank, columns,
        blocks, scale, GATHER=source is not None, ADD=add, PAD=_pad(rank), BT=table["block_t"], BN=table["block_n"],
        PRECISION=_precision(v), **FUSED, num_warps=table["warps"],
        num_stages=_stages(table, capability, size),
    )  # fmt: skip


def launch_turn(b: Tensor, scale: float, out: Tensor) -> None:
    """Compute `out [E, N, r] = scale * b [N, r, E]`."""
    rows, rank, groups = b.shape
    _turn_kernel[(rows,)](
        b, out, rows, rank, groups, scale, PAD=next_power_of_2(rank), GROUPS=next_power_of_2(groups), **FUSED,
        num_warps=4,
    )  # fmt: skip


def launch_combine(y: Tensor, back: Tensor, weights: Tensor | None, chosen: int, out: Tensor) -> None:
    """Compute `out[t] = sum over j < chosen of weights[t, j] y[back[t, j]]`."""
    table = launch("grouped_combine", compute_capability(y.device))
    block = min(table["block"], next_power_of_2(y.shape[1]))
    _combine_kernel[(len(out), cdiv(y.shape[1], block))](
        y, back, y if weights is None else weights, out, y.stride(0), out.stride(0), y.shape[1], chosen,
        WEIGHTED=weights is not None, BLOCK=block, **FUSED, num_warps=table["warps"],
    )  # fmt: skip


def launch_gate_backward(
    dh: Tensor, halves: tuple[Tensor, Tensor], weights: Tensor, act: str, dot: Tensor,
    outs: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """Compute h, what dh says of a row's weight, and the gradients of gate and up, of dh times the weight.

    `halves`: gate and up. `outs`: where h, dgate and dup go.
    """
    table = launch("grouped_gate_backward", compute_capability(dh.device))
    block = min(table["block"], next_power_of_2(dh.shape[1]))
    strides = [t.stride(0) for t in (dh, *halves, *outs)]
    _gate_backward_kernel[(len(dh),)](
        dh, *halves, weights, dot, *outs, *strides, dh.shape[1], ACT=act, BLOCK=block, **FUSED,
        num_warps=table["warps"],
    )  # fmt: skip
