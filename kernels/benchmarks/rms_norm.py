"""RMSNorm: forward, with residual, recomputed, backward with and without the weight's gradient; heads of q."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nbtune_kernels import add_rms_norm, rms_norm, rms_norm_apply, rms_norm_backward

from benchmarks.measure import Row, Shape, draw, error, liger, prepared

EPS = 1e-5


def check(width: int) -> float:
    """Largest error of y, h, dx and dweight against autograd in fp64."""
    x, residual, w, dy, dh = draw(1024, width), draw(1024, width), draw(width), draw(1024, width), draw(1024, width)
    y, h, rstd = add_rms_norm(x, residual, w, EPS)
    dx, dw = rms_norm_backward(dy, h, w, rstd, need_dweight=True, dresidual=dh)
    leaf, weight = h.double().requires_grad_(), w.double().requires_grad_()
    want = leaf * torch.rsqrt(leaf.square().mean(-1, keepdim=True) + EPS) * weight
    gx, gw = torch.autograd.grad(want, (leaf, weight), dy.double())
    pairs = ((h, x.double() + residual.double()), (y, want.detach()), (dx, gx + dh.double()), (dw, gw))
    same = torch.equal(rms_norm_apply(h, w, rstd), y)
    return max(error(a, b) for a, b in pairs) if same else float("inf")


def rows(s: Shape) -> Iterator[Row]:
    """The lines of this op."""
    t, width, theirs = s.tokens, s.hidden, liger("rms_norm")
    fused = liger("fused_add_rms_norm")
    shape, size = f"{t}x{width}", 2 * t * width
    x, residual, w, dy = draw(t, width), draw(t, width), draw(width), draw(t, width)
    y, h, dx = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    _, rstd = rms_norm(x, w, EPS)
    others = {"liger": lambda: theirs.rms_norm_forward(x, w, EPS, 0.0, "llama", None)} if theirs else {}
    yield Row("rms_norm", shape, lambda: rms_norm(x, w, EPS, out=y), 2 * size, lambda: check(width), others)
    others = {"liger": lambda: fused.fused_add_rms_norm_forward(x, residual, w, EPS, 0.0, "llama")} if fused else {}
    yield Row(
        "add_rms_norm", shape, lambda: add_rms_norm(x, residual, w, EPS, out=y, out_residual=h), 4 * size, None, others
    )
    yield Row("rms_norm_apply", shape, lambda: rms_norm_apply(x, w, rstd, out=y), 2 * size)
    yield Row(
        "rms_norm_backward + dresidual", shape,
        lambda: rms_norm_backward(dy, x, w, rstd, dresidual=residual, out=dx), 4 * size,
    )  # fmt: skip
    others = {}
    if theirs:
        others["liger"] = prepared(
            lambda: theirs.rms_norm_forward(x, w, EPS, 0.0, "llama", None)[2:],
            lambda r, block, warps, mode: theirs.rms_norm_backward(
                dy, x, w, r, 0.0, mode, block, warps, False, None, True
            ),
        )
    yield Row(
        "rms_norm_backward + dweight", shape, lambda: rms_norm_backward(dy, x, w, rstd, need_dweight=True, out=dx),
        3 * size, None, others,
    )  # fmt: skip
    heads, wh = draw(t, s.heads, s.head_dim), draw(s.head_dim)
    out = torch.empty_like(heads)
    yield Row(
        "rms_norm of heads", f"{t}x{s.heads}x{s.head_dim}", lambda: rms_norm(heads, wh, EPS, out=out),
        2 * 2 * heads.numel(), lambda: check(s.head_dim),
    )  # fmt: skip
