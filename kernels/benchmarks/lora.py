"""LoRA's skinny products, grouped as a Llama block groups them, against cuBLAS one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nbtune_kernels import lora_dxa, lora_grads, lora_xa

from benchmarks.measure import Row, Shape, draw, error


def check(s: Shape) -> float:
    """Largest error of xa, dxa, dA and dB of q, k, v against fp64."""
    t, ranks, kv = 4096, [s.rank] * 3, s.kv_heads * s.head_dim
    outs = [s.heads * s.head_dim, kv, kv]
    x, a = draw(t, s.hidden), draw(sum(ranks), s.hidden, scale=s.hidden**-0.5)
    bs, dys = [draw(o, s.rank) for o in outs], list(draw(t, sum(outs)).split(outs, -1))
    xa, dxa = lora_xa(x, a), lora_dxa(dys, bs, [2.0, 1.0, 0.5])
    da, dbs = lora_grads(x, xa, dxa, dys, ranks, [2.0, 1.0, 0.5], dtype=torch.float32)
    want = torch.cat([f * d.double() @ b.double() for f, d, b in zip((2.0, 1.0, 0.5), dys, bs, strict=True)], -1)
    pairs = [(xa, x.double() @ a.double().t()), (dxa, want), (da, dxa.double().t() @ x.double())]
    for f, d, u, g in zip((2.0, 1.0, 0.5), dys, xa.split(ranks, -1), dbs, strict=True):
        pairs.append((g, f * d.double().t() @ u.double()))
    again, _ = lora_grads(x, xa, dxa, dys, ranks, [2.0, 1.0, 0.5], dtype=torch.float32)
    return max(error(p, q) for p, q in pairs) if torch.equal(again, da) else float("inf")


def rows(s: Shape) -> Iterator[Row]:
    """The lines of this op."""
    kv = s.kv_heads * s.head_dim
    blocks = {
        "qkv": (s.hidden, [s.heads * s.head_dim, kv, kv]),
        "gate_up": (s.hidden, [s.inner, s.inner]),
        "down": (s.inner, [s.hidden]),
    }
    for i, (name, (width, outs)) in enumerate(blocks.items()):
        yield from _block(s, name, width, outs, first=i == 0)


def _block(s: Shape, name: str, width: int, outs: list[int], first: bool) -> Iterator[Row]:
    t, n = s.tokens, len(outs)
    ranks, scalings = [s.rank] * n, [2.0] * n
    total = sum(ranks)
    x, a = draw(t, width), draw(total, width, scale=width**-0.5)
    bs, dys = [draw(o, s.rank) for o in outs], list(draw(t, sum(outs)).split(outs, -1))
    xa, dxa = lora_xa(x, a), lora_dxa(dys, bs, scalings)
    da, dbs = lora_grads(x, xa, dxa, dys, ranks, scalings, dtype=torch.float32)
    o16, a16, b16 = torch.empty_like(xa), a.clone(), [b.clone() for b in bs]
    xas = xa.split(ranks, -1)

    def cublas_dxa() -> None:
        for dy, b, out in zip(dys, bs, o16.split(ranks, -1), strict=True):
            torch.mm(dy, b, out=out)

    def cublas_grads() -> None:
        torch.mm(dxa.t(), x, out=a16)
        for dy, u, b in zip(dys, xas, b16, strict=True):
            torch.mm(dy.t(), u, out=b)

    shape = f"{t}x{width}->{'+'.join(map(str, outs))}"
    yield Row(
        f"lora_xa {name}", shape, lambda: lora_xa(x, a, out=o16), 2 * t * (width + total),
        (lambda: check(s)) if first else None, {"cublas": lambda: torch.mm(x, a.t(), out=o16)},
    )  # fmt: skip
    yield Row(
        f"lora_dxa {name}", shape, lambda: lora_dxa(dys, bs, scalings, out=o16), 2 * t * (sum(outs) + total), None,
        {"cublas": cublas_dxa},
    )  # fmt: skip
    yield Row(
        f"lora_grads {name}", shape,
        lambda: lora_grads(x, xa, dxa, dys, ranks, scalings, out_da=da, out_dbs=dbs),
        2 * t * (width + sum(outs) + 2 * total), None, {"cublas": cublas_grads},
    )  # fmt: skip
