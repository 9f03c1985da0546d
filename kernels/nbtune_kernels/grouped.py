"""Products by groups: rows that lie sorted by group, each group of which has a matrix of its own (a mixture's experts).

    rows:     y_i = x_s(i) W_g^T + xa_i B_g^T     of each row i of group g, which is row s(i) of x
    sums:     D_g = c sum over rows i of group g of u_i^T v_s(i)
    combine:  out_t = sum over j of w_tj y_back(t, j)
    gate:     with a = act(gate): h = a up;  dot = dh . h;  dgate = w dh up act'(gate);  dup = w dh a

`ends` int32 `[E]` says behind which row each group ends; a group may have none. LoRA's narrow product is added before
the one rounding, and no x[s] is ever written.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nbtune_kernels._runtime import compute_capability, op, tensor_cores, use_triton
from nbtune_kernels.activation import act_mul_backward
from nbtune_kernels.activation import reference as plain_activation
from nbtune_kernels.grouped_kernels import (
    launch_combine,
    launch_gate_backward,
    launch_rows,
    launch_sums,
    launch_tiles,
    launch_turn,
    most_tiles,
)
from nbtune_kernels.tables import launch


class Groups(NamedTuple):
    """Where groups end, int32 `[E]`, and which group each block of rows is of, where kernels want to know."""

    ends: Tensor
    tiles: Tensor | None = None

    @classmethod
    def of(cls, ends: Tensor, rows: int, dtype: torch.dtype) -> "Groups":
        """Make them for so many rows of a dtype."""
        return cls(ends, grouped_tiles(ends, rows) if runs_grouped(ends, dtype) else None)


def runs_grouped(like: Tensor, dtype: torch.dtype) -> bool:
    """Return whether kernels make the products of a dtype: where tensor cores do (the interpreter: always). Else groups
    are multiplied one by one, and where these end is waited for."""
    return use_triton(like) and tensor_cores(like) and (dtype.itemsize == 2 or not like.is_cuda)


def reference(x: Tensor, w: Tensor, ends: Tensor, source: Tensor | None = None) -> Tensor:
    """Compute each row times its group's matrix, one product a group; differentiable by autograd."""
    rows = x if source is None else x[source.long()]
    parts = [rows[start:end] @ w[group].t() for group, start, end in _groups(ends)]
    return torch.cat(parts) if parts else rows.new_zeros(0, w.shape[1])


def _groups(ends: Tensor) -> Iterator[tuple[int, int, int]]:
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            yield group, start, end
        start = end


# ---------------------------------------------------------------- plain torch


def _aligned(matrix: Tensor) -> bool:
    strides = [stride for stride in matrix.stride() if stride != 1]
    whole = all(n * matrix.element_size() % 16 == 0 for n in (*strides, *matrix.shape[-2:]))
    return 1 in matrix.stride() and whole and matrix.data_ptr() % 16 == 0


def _is_fast(*matrices: Tensor) -> bool:
    """Return whether torch's own grouped products take these: bf16, sm_80, whole 16 bytes from row to row."""
    if not (matrices[0].is_cuda and hasattr(torch.nn.functional, "grouped_mm")):
        return False
    fits = all(m.dtype == torch.bfloat16 and _aligned(m) for m in matrices)
    return fits and compute_capability(matrices[0].device) >= 80


def plain_tiles(ends: Tensor, rows: int, block: int) -> Tensor:
    """Return int32 `[2, most]`: of which group each block of rows is (-1: of none), and its first row."""
    starts = torch.cat((ends.new_zeros(1), ends[:-1])).long()
    each = (ends - starts + block - 1) // block
    group = torch.repeat_interleave(torch.arange(len(ends), device=ends.device), each)
    within = torch.arange(len(group), device=ends.device) - (each.cumsum(0) - each)[group]
    left = torch.arange(most_tiles(rows, len(ends), block) - len(group), device=ends.device)
    whole = torch.stack((group, starts[group] + within * block))
    return torch.cat((whole, torch.stack((left * 0 - 1, left * block))), 1).int()


def _plain_rows(x: Tensor, w: Tensor, ends: Tensor, out: Tensor, *, add: bool = False) -> None:
    if _is_fast(x, w):
        made = torch.nn.functional.grouped_mm(x, w.transpose(1, 2), offs=ends)
        out.add_(made) if add else out.copy_(made)
        return
    for group, start, end in _groups(ends):
        if add:
            out[start:end].addmm_(x[start:end], w[group].t())
        else:
            torch.mm(x[start:end], w[group].t(), out=out[start:end])


def _plain_sums(u: Tensor, v: Tensor, ends: Tensor, scale: float, out: Tensor, add: bool) -> None:
    if not add:
        out.zero_()
    if _is_fast(u, v):
        out.add_(torch.nn.functional.grouped_mm(u.t(), v, offs=ends), alpha=scale)
        return
    for group, start, end in _groups(ends):
        out[group] += torch.mm(u[start:end].t(), v[start:end]) * scale


# ---------------------------------------------------------------- ops


def _block(ends: Tensor) -> int:
    return int(launch("grouped_rows", compute_capability(ends.device))["block_m"])


@op(
    "grouped_tiles(Tensor ends, int rows) -> Tensor",
    lambda ends, rows: ends.new_empty((2, most_tiles(rows, len(ends), _block(ends)))),
)
def _tiles(ends, rows):
    return (launch_tiles if use_triton(ends) else plain_tiles)(ends, rows, _block(ends))


@op(
    "grouped_rows(Tensor x, Tensor w, Tensor ends, Tensor? tiles, Tensor? source, Tensor? xa, Tensor? b,"
    " Tensor(a!) out) -> ()",
    lambda *_: None,
)
def _rows(x, w, ends, tiles, source, xa, b, out):
    if tiles is not None:
        return launch_rows(x, w, (ends, tiles), source, None if b is None else (xa, b), out)
    _plain_rows(x if source is None else x[source.long()], w, ends, out)
    if xa is not None and b is not None:
        _plain_rows(xa, b, ends, out, add=True)


@op(
    "grouped_sums(Tensor u, Tensor v, Tensor ends, Tensor? source, float scale, bool add, bool kernel, Tensor(a!) out)"
    " -> ()",
    lambda *_: None,
)
def _sums(u, v, ends, source, scale, add, kernel, out):
    if kernel:
        return launch_sums(u, v, ends, source, scale, out, add)
    _plain_sums(u, v if source is None else v[source.long()], ends, scale, out, add)


@op("grouped_turn(Tensor b, float scale, Tensor(a!) out) -> ()", lambda *_: None)
def _turn(b, scale, out):
    if use_triton(b):
        return launch_turn(b.contiguous(), scale, out)
    out.copy_(b.permute(2, 0, 1) * scale)


@op("grouped_combine(Tensor y, Tensor back, Tensor? weights, int chosen, Tensor(a!) out) -> ()", lambda *_: None)
def _combine(y, back, weights, chosen, out):
    if use_triton(y):
        return launch_combine(y, back, weights, chosen, out)
    rows = y[back.long()].view(len(out), chosen, -1)
    if weights is None:
        torch.sum(rows, 1, out=out)
    else:
        out.copy_(torch.bmm(weights.to(y.dtype)[:, None], rows)[:, 0])


@op(
    "grouped_gate_backward(Tensor(a!) dh, Tensor(b!) gate, Tensor(c!) up, Tensor weights, str act, Tensor(d!) dot)"
    " -> ()",
    lambda *_: None,
)
def _gate_backward(dh, gate, up, weights, act, dot):
    if use_triton(dh):
        return launch_gate_backward(dh, (gate, up), weights, act, dot, (dh, gate, up))
    h = plain_activation(gate, up, act)
    torch.sum(dh * h, -1, dtype=torch.float32, out=dot)
    act_mul_backward(dh.mul_(weights.to(dh.dtype)[:, None]), gate, up, act=act, out_h=dh, out_dgate=gate, out_dup=up)


# ---------------------------------------------------------------- public


def grouped_tiles(ends: Tensor, rows: int) -> Tensor:
    """Return which group each block of rows is of, and its first row, for so many rows."""
    return _tiles(ends, rows)  # type: ignore[no-any-return]


def grouped_rows(
    x: Tensor, w: Tensor, groups: Groups, source: Tensor | None = None, xa: Tensor | None = None,
    b: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return `[S, N]`: each row times its group's matrix, and LoRA's second product added.

    Args:
        x: `[S, K]`, sorted by group; with `source` int32 `[S]`, `[T, K]` in any order.
        w: `[E, N, K]`, at any strides of which one is 1.
        groups: where they end.
        source: which row of x each row is.
        xa, b: `[S, r]` and `[E, N, r]`.
    """
    rows = len(x) if source is None else len(source)
    out = torch.empty((rows, w.shape[1]), dtype=x.dtype, device=x.device)
    _rows(x, w, groups.ends, groups.tiles, source, xa, b, out)
    return out


def grouped_sums(
    u: Tensor, v: Tensor, groups: Groups, source: Tensor | None = None, *, scale: float = 1.0, add: bool = False,
    out: Tensor,
) -> Tensor:  # fmt: skip
    """Compute `[E, r, N]`, zero for a group without rows, into `out`, which may lie at any strides.

    Args:
        u: `[S, r]`, sorted by group, narrow.
        v: `[S, N]`; with `source`, `[T, N]` in any order.
        groups: where they end.
        source: which row of v each row is.
        scale: of it all.
        add: to what is there.
        out: where it goes.
    """
    _sums(u, v, groups.ends, source, scale, add, groups.tiles is not None, out)
    return out


def grouped_turn(b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return `[E, N, r]` of `[N, r, E]`, times the scale, in a dtype: a matrix a group of what has the group last."""
    rows, rank, groups = b.shape
    out = torch.empty((groups, rows, rank), dtype=dtype, device=b.device)
    _turn(b, scale, out)
    return out


def grouped_combine(y: Tensor, back: Tensor, tokens: int, weights: Tensor | None = None) -> Tensor:
    """Return `[T, N]`: the sum of each token's rows of y `[S, N]`, times their weights.

    Args:
        y: rows; back: int32 `[T k]`, which of them are a token's.
        tokens: T. weights: `[T, k]`.
    """
    out = torch.empty((tokens, y.shape[1]), dtype=y.dtype, device=y.device)
    _combine(y, back, weights, len(back) // max(1, tokens), out)
    return out


def grouped_gate_backward(dh: Tensor, gate: Tensor, up: Tensor, weights: Tensor, *, act: str) -> Tensor:
    """Write h over dh, and the gradients of gate and up, of dh times its row's weight, over gate and up; return dot,
    fp32 `[S]`, which is the weights' own gradient.

    Args:
        dh: `[S, I]`, the gradient before weights. gate, up: `[S, I]`, rows at any stride. weights: fp32 `[S]`.
        act: one of `ACTIVATIONS`.
    """
    dot = torch.empty(len(dh), dtype=torch.float32, device=dh.device)
    _gate_backward(dh, gate, up, weights, act, dot)
    return dot
