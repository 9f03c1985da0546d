"""Products by groups: those of each group by itself, whatever their sizes, and gradients that autograd agrees with."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import Groups, grouped_combine, grouped_gate_backward, grouped_rows, grouped_sums, grouped_turn
from nbtune_kernels._runtime import use_triton
from nbtune_kernels.activation import reference as plain_activation
from nbtune_kernels.grouped import plain_tiles, reference
from nbtune_kernels.grouped_kernels import launch_tiles
from torch import Tensor

COUNTS = [[0, 70, 1, 0, 16], [3], [0, 0, 5], [64, 128, 0, 1], [0]]


def groups_of(counts: list[int], device: str, dtype: torch.dtype) -> tuple[Groups, Tensor]:
    """Their ends, and the group of each row."""
    ends = torch.tensor(counts, device=device).cumsum(0).to(torch.int32)
    return Groups.of(ends, sum(counts), dtype), torch.repeat_interleave(torch.tensor(counts, device=device))


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("block", [16, 64])
def test_blocks_of_rows_are_of_one_group_each(device, counts, block):
    ends = torch.tensor(counts, device=device).cumsum(0).to(torch.int32)
    group, first = plain_tiles(ends, sum(counts), block).tolist()
    starts = [0, *ends.tolist()[:-1]]
    wanted = [(g, row) for g, count in enumerate(counts) for row in range(starts[g], starts[g] + count, block)]
    assert [pair for pair in zip(group, first, strict=True) if pair[0] >= 0] == wanted
    if use_triton(ends):
        assert torch.equal(launch_tiles(ends, sum(counts), block), plain_tiles(ends, sum(counts), block))


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("gathered", [False, True])
def test_each_row_meets_the_matrix_of_its_group(draw, near, device, dtype, counts, turned, gathered):
    groups, group = groups_of(counts, device, dtype)
    rows, n, k, r = sum(counts), 72, 40, 3
    x = draw(9 if gathered else rows, k, dtype=dtype)
    source = torch.randint(0, 9, (rows,), device=device, dtype=torch.int32) if gathered else None
    w = draw(len(counts), k, n, dtype=dtype).transpose(1, 2) if turned else draw(len(counts), n, k, dtype=dtype)
    xa, b = draw(rows, r, dtype=dtype), draw(len(counts), n, r, dtype=dtype)
    each = x if source is None else x[source.long()]
    plain = torch.einsum("sk,snk->sn", each.double(), w[group].double())
    more = torch.einsum("sr,snr->sn", xa.double(), b[group].double())
    near(grouped_rows(x, w, groups, source), plain, dtype)
    near(grouped_rows(x, w, groups, source, xa, b), plain + more, dtype, factor=2)
    near(reference(x, w, groups.ends, source), plain, dtype)


@pytest.mark.parametrize("counts", COUNTS)
def test_sums_are_those_of_each_groups_rows_and_zero_without_any(draw, near, device, dtype, counts):
    groups, group = groups_of(counts, device, dtype)
    rows, n, r = sum(counts), 72, 3
    u, v = draw(rows, r, dtype=dtype), draw(7, n, dtype=dtype)
    source = torch.randint(0, 7, (rows,), device=device, dtype=torch.int32)
    lies = torch.full((n, r, len(counts)), 9.0, device=device)  # as peft's B does: the group is the fastest
    grouped_sums(u, v, groups, source, scale=0.5, out=lies.permute(2, 1, 0))
    for g in range(len(counts)):
        mine = group == g
        near(lies[..., g].T, 0.5 * u[mine].double().T @ v[source.long()][mine].double(), dtype)
    once = lies.clone()
    grouped_sums(u, v, groups, source, scale=0.5, add=True, out=lies.permute(2, 1, 0))
    near(lies, 2 * once, torch.float32)


def test_what_has_the_group_last_becomes_a_matrix_a_group(draw, near, device, dtype):
    b = draw(7, 3, 5)
    near(grouped_turn(b, 1.5, dtype), 1.5 * b.permute(2, 0, 1), dtype)


@pytest.mark.parametrize("weighted", [False, True])
def test_combined_rows_are_the_sum_of_each_tokens(draw, near, device, dtype, weighted):
    y, tokens, chosen = draw(15, 50, dtype=dtype), 5, 3
    back = torch.randperm(15, device=device).to(torch.int32)
    weights = draw(tokens, chosen, dtype=dtype) if weighted else None
    factor = 1.0 if weights is None else weights.double()[..., None]
    true = (y[back.long()].double().view(tokens, chosen, -1) * factor).sum(1)
    near(grouped_combine(y, back, tokens, weights), true, dtype, factor=2)


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [24, 1100])
def test_the_way_back_through_the_gate(draw, near, device, dtype, act, width):
    both, dh, weights = draw(6, 2 * width, dtype=dtype), draw(6, width, dtype=dtype), draw(6).abs()
    leaf, w = both.double().requires_grad_(), weights.double().requires_grad_()
    h = plain_activation(*leaf.split(width, 1), act)
    dleaf, dw = torch.autograd.grad(h * w[:, None], (leaf, w), dh.double())
    dot = grouped_gate_backward(dh, both[:, :width], both[:, width:], weights, act=act)
    near(dh, h, dtype)
    near(both, dleaf, dtype, factor=3)
    near(dot, dw, dtype, factor=3)
