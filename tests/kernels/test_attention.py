"""Attention with caps, slopes, windows and documents: equal to whole scores, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nbtune_kernels import scored_attention
from nbtune_kernels.attention import reference

# heads, kv heads, size of a head, documents, cap, ALiBi, window
CASES: dict[str, tuple[int, int, int, list[int], float, bool, int]] = {
    "plain": (2, 2, 16, [40], 0.0, False, 0),
    "capped, grouped": (4, 2, 32, [40, 23], 5.0, False, 0),
    "capped, windowed": (2, 1, 16, [70, 5, 33], 5.0, False, 21),
    "alibi": (4, 4, 16, [17, 40], 0.0, True, 0),
    "alibi, capped, an empty document": (2, 2, 24, [33, 0, 9, 0], 3.0, True, 12),
    "a window shorter than a block": (2, 2, 16, [50], 0.0, False, 3),
    "wide heads, whose sums are made apart": (2, 1, 200, [37, 5], 4.0, False, 0),
    "one token": (2, 1, 16, [1, 1, 34], 2.0, False, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_whole_scores(case: str, dtype: torch.dtype, draw: Any, near: Any, device: str) -> None:
    heads, kv, dim, lengths, cap, alibi, window = CASES[case]
    n = sum(lengths)
    packed = draw(n, heads + 2 * kv, dim, dtype=dtype, scale=2.0)  # views, as of a projection
    bounds = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    slopes = torch.tensor([2.0**-i for i in range(1, heads + 1)], device=device) if alibi else None
    do = draw(n, heads, dim, dtype=dtype)

    def run(x: torch.Tensor, ours: bool) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        q, k, v = x.split([heads, kv, kv], 1)
        if ours:
            longest = max(lengths) + 3
            o = scored_attention(q, k, v, bounds, longest, scale=0.3, cap=cap, slopes=slopes, window=window)
        else:
            o = reference(q, k, v, bounds, slopes, 0.3, cap, window)
        (grad,) = torch.autograd.grad(o, x, do.to(o.dtype))
        return o, grad

    ours, truth = run(packed, True), run(packed.double(), False)
    near(ours[0], truth[0], dtype, 1.5)
    near(ours[1], truth[1], dtype, 3.0)


def test_refuses_heads_of_other_sizes(draw: Any, device: str) -> None:
    cu = torch.tensor([0, 4], dtype=torch.int32, device=device)
    for kv, dim in ((3, 16), (2, 8)):
        with pytest.raises(ValueError, match="heads"):
            scored_attention(draw(4, 4, 16), draw(4, kv, dim), draw(4, kv, dim), cu, 4, scale=1.0)
