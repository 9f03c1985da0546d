"""LayerNorm: forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nbtune_kernels import layer_norm, layer_norm_backward

from benchmarks.measure import Row, Shape, draw, error, liger, prepared

EPS = 1e-5


def check(width: int) -> float:
    """Largest error of y and the gradients against autograd in fp64."""
    x, w, b, dy = draw(1024, width), draw(width), draw(width), draw(1024, width)
    y, mean, rstd = layer_norm(x, w, b, EPS)
    got = (y, *layer_norm_backward(dy, x, w, mean, rstd, need_dweight=True))
    leaves = [t.double().requires_grad_() for t in (x, w, b)]
    want = torch.nn.functional.layer_norm(leaves[0], (width,), *leaves[1:], EPS)
    truth = (want.detach(), *torch.autograd.grad(want, leaves, dy.double()))
    return max(error(a, c) for a, c in zip(got, truth, strict=True))


def rows(s: Shape) -> Iterator[Row]:
    """The lines of this op."""
    t, width, theirs = s.tokens, s.hidden, liger("layer_norm")
    shape, size = f"{t}x{width}", 2 * t * width
    x, w, b, dy = draw(t, width), draw(width), draw(width), draw(t, width)
    _, mean, rstd = layer_norm(x, w, b, EPS)
    others = {"liger": lambda: theirs.layer_norm_forward(x, w, b, EPS)} if theirs else {}
    yield Row("layer_norm", shape, lambda: layer_norm(x, w, b, EPS), 2 * size, lambda: check(width), others)
    others = {}
    if theirs:
        others["liger"] = prepared(
            lambda: theirs.layer_norm_forward(x, w, b, EPS)[2:4],
            lambda m, r: theirs.layer_norm_backward(dy, x, w, b, m, r),
        )
    yield Row(
        "layer_norm_backward + dweight", shape,
        lambda: layer_norm_backward(dy, x, w, mean, rstd, need_dweight=True), 3 * size, None, others,
    )  # fmt: skip
