"""Rotary embedding of q and k inside a packed projection, in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nbtune_kernels import rope

from benchmarks.measure import Row, Shape, draw, error, liger


def _angles(length: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.outer(torch.arange(length), 1e4 ** (-torch.arange(0, dim, 2) / dim))
    t = torch.cat((t, t), -1)[None]
    return t.cos().cuda().bfloat16(), t.sin().cuda().bfloat16()


def check(s: Shape) -> float:
    """Error of the rotated q against fp64, plus that of turning it back."""
    q, k = draw(2, 512, s.heads, s.head_dim), draw(2, 512, s.kv_heads, s.head_dim)
    cos, sin = _angles(512, s.head_dim)
    got, got_k = rope(q, k, cos, sin)
    half = s.head_dim // 2
    worst = 0.0
    for x, mine in ((q, got), (k, got_k)):
        other = torch.cat((-x[..., half:], x[..., :half]), -1).double()
        worst = max(worst, error(mine, x.double() * cos.double().unsqueeze(2) + other * sin.double().unsqueeze(2)))
    back, _ = rope(got, got_k, cos, sin, inverse=True)
    return max(worst, error(back, q))


def rows(s: Shape) -> Iterator[Row]:
    """The lines of this op."""
    length, dim = 2048, s.head_dim
    batch, theirs = max(1, s.tokens // length), liger("rope")
    packed = draw(batch * length, (s.heads + 2 * s.kv_heads) * dim)
    q = packed[:, : s.heads * dim].view(batch, length, s.heads, dim)
    k = packed[:, s.heads * dim : (s.heads + s.kv_heads) * dim].view(batch, length, s.kv_heads, dim)
    cos, sin = _angles(length, dim)
    others = {}
    if theirs:
        tq, tk = q.contiguous().transpose(1, 2), k.contiguous().transpose(1, 2)
        others = {"liger": lambda: theirs.rope_forward(tq, tk, cos, sin)}
    moved = 2 * 2 * (q.numel() + k.numel())
    shape = f"{batch * length}x({s.heads}+{s.kv_heads})x{dim}"
    yield Row("rope in place", shape, lambda: rope(q, k, cos, sin, inplace=True), moved, lambda: check(s), others)
    yield Row("rope", shape, lambda: rope(q, k, cos, sin), moved)
