"""Rows in the order of their groups: a stable counting sort of small numbers, and what it moves along.

    counts[b, g] = how many of block b's places chose group g;   base = their running sum, group by group
    place i of block b goes to row  base[b, g_i] + (places before it in b with the same g)

The same order each time: nothing is added atomically.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, jit, next_power_of_2, op, tl, use_triton

_TILE = 8192  # places times groups that a program compares at once


class Sorted(NamedTuple):
    """What a sort by groups says; all int32.

    `order [S]`: the place that each row is; `back [S]`: the row that each place is; `token [S]`: the token, `order //
    chosen`; `group [S]`: each row's; `ends [E]`: where groups end.
    """

    order: Tensor
    back: Tensor
    token: Tensor
    group: Tensor
    ends: Tensor


@jit
def _count_kernel(index_ptr, counts_ptr, places, groups, blocks, PAD: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    g = tl.arange(0, PAD)
    mine = tl.load(index_ptr + i, i < places, other=-1).to(tl.int32)
    hits = (mine[:, None] == g[None, :]).to(tl.int32)
    tl.store(counts_ptr + g * blocks + block, tl.sum(hits, 0), g < groups)


@jit
def _place_kernel(
    index_ptr, sums_ptr, order_ptr, back_ptr, token_ptr, group_ptr, places, groups, blocks, chosen,
    PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    g = tl.arange(0, PAD)
    mine = tl.load(index_ptr + i, i < places, other=-1).to(tl.int32)
    hits = (mine[:, None] == g[None, :]).to(tl.int32)
    before = g * blocks + block - 1  # the running sum in front of this block's places of a group
    base = tl.load(sums_ptr + before, (g < groups) & (before >= 0), other=0).to(tl.int32)
    row = tl.sum(hits * (tl.cumsum(hits, 0) + base[None, :]), 1) - 1
    live = i < places
    tl.store(order_ptr + row, i, live)
    tl.store(token_ptr + row, i // chosen, live)
    tl.store(group_ptr + row, mine, live)
    tl.store(back_ptr + i, row, live)


def _launch(index: Tensor, groups: int, chosen: int, out: Tensor, ends: Tensor) -> None:
    places = index.numel()
    pad = max(2, next_power_of_2(groups))
    block = max(16, min(256, _TILE // pad))
    blocks = cdiv(places, block)
    counts = torch.empty((groups, blocks), dtype=torch.int32, device=index.device)
    _count_kernel[(blocks,)](index, counts, places, groups, blocks, PAD=pad, BLOCK=block, **FUSED, num_warps=4)
    sums = counts.view(-1).cumsum(0, dtype=torch.int32)
    ends.copy_(sums.view(groups, blocks)[:, -1])
    _place_kernel[(blocks,)](
        index, sums, *out, places, groups, blocks, chosen, PAD=pad, BLOCK=block, **FUSED, num_warps=4
    )


@op("sort_by_group(Tensor index, int groups, int chosen, Tensor(a!) out, Tensor(b!) ends) -> ()", lambda *_: None)
def _sort(index, groups, chosen, out, ends):
    if use_triton(index) and index.numel():
        return _launch(index.contiguous(), groups, chosen, out, ends)
    order, back, token, group = out
    expert, found = torch.sort(index.reshape(-1), stable=True)
    numbers = torch.arange(groups, device=index.device, dtype=expert.dtype)
    ends.copy_(torch.searchsorted(expert, numbers, right=True))
    order.copy_(found)
    group.copy_(expert)
    torch.div(order, max(1, chosen), rounding_mode="floor", out=token)
    back[found] = torch.arange(len(found), dtype=torch.int32, device=found.device)


def sort_by_group(index: Tensor, groups: int) -> Sorted:
    """Return the places of `index [T, k]`, each of which names one of so many groups, sorted by group.

    >>> sort_by_group(torch.tensor([[1, 0], [1, 2]]), 3).order.tolist()
    [1, 0, 2, 3]
    """
    chosen = index.shape[-1]
    out = torch.empty((4, index.numel()), dtype=torch.int32, device=index.device)
    ends = torch.empty(groups, dtype=torch.int32, device=index.device)
    _sort(index, groups, chosen, out, ends)
    order, back, token, group = out
    return Sorted(order, back, token, group, ends)
