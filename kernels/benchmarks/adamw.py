"""AdamW over all adapters of an 8B model (448 tensors, 42 M parameters) in one launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nbtune_kernels import FusedAdamW

from benchmarks.measure import Row, Shape, draw, error


def check() -> float:
    """Error of three steps against torch.optim.AdamW in fp64."""
    params, grads = [draw(64, 100, dtype=torch.float32), draw(33, dtype=torch.float32)], []
    grads = [draw(*p.shape, dtype=torch.float32) for p in params]
    theirs = [torch.nn.Parameter(p.double()) for p in params]
    stock = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1)
    mine = FusedAdamW(params, grads, weight_decay=0.1)
    for _ in range(3):
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.double()
        stock.step()
        mine.step(torch.tensor(1e-2, device="cuda"))
    return max(error(a, b.detach()) for a, b in zip(params, theirs, strict=True))


def rows(s: Shape) -> Iterator[Row]:
    """The lines of this op."""
    kv, r, layers = s.kv_heads * s.head_dim, s.rank, 32
    widths = [(s.hidden, s.hidden), (s.hidden, kv), (s.hidden, kv), (s.hidden, s.hidden)]
    widths += [(s.hidden, s.inner), (s.hidden, s.inner), (s.inner, s.hidden)]
    shapes = [shape for i, o in widths * layers for shape in ((r, i), (o, r))]
    params = [draw(*shape, dtype=torch.float32) for shape in shapes]
    grads = [draw(*shape, dtype=torch.float32) for shape in shapes]
    copies = [p.bfloat16() for p in params]
    optimizer = FusedAdamW(params, grads, copies=copies)
    lr = torch.tensor(1e-4, device="cuda")
    n = sum(p.numel() for p in params)

    def step() -> None:
        norm = optimizer.grad_norm()
        optimizer.step(lr, clip=optimizer.clip_factor(norm, 1.0))

    stock = [torch.nn.Parameter(p.clone()) for p in params]
    for p, g in zip(stock, grads, strict=True):
        p.grad = g
    theirs = torch.optim.AdamW(stock, lr=lr, fused=True, capturable=True)
    yield Row(
        "adamw + bf16 copies", f"{len(params)} tensors, {n / 1e6:.0f} M", lambda: optimizer.step(lr), n * (28 + 2),
        check, {"torch fused": theirs.step},
    )  # fmt: skip
    yield Row("adamw + clipping", f"{n / 1e6:.0f} M", step, n * (28 + 2 + 4))
