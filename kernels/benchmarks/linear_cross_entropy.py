"""The fused head: its row kernel by bandwidth, the whole by the two products that it cannot do without."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nbtune_kernels import linear_cross_entropy, linear_logprobs
from nbtune_kernels.cross_entropy import Head, RowStats, cross_entropy_rows_
from nbtune_kernels.linear_cross_entropy import reference

from benchmarks.measure import Row, Shape, draw, error, liger


def check(s: Shape) -> float:
    """Largest error of the loss and both gradients against autograd in fp64, over several chunks."""
    hidden, weight = draw(300, 256), draw(s.vocabulary, 256, scale=1 / 16)
    labels = torch.randint(0, s.vocabulary, (300,), device="cuda")
    labels[::3] = -100
    out = linear_cross_entropy(hidden, weight, labels, scale=1 / 200, need_dweight=True, chunk=128, softcap=30.0)
    leaves = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    loss = reference(*leaves, labels, scale=1 / 200, head=Head(softcap=30.0))
    grads = torch.autograd.grad(loss, leaves)
    pairs = ((out.loss, loss.detach()), (out.dhidden, grads[0]), (out.dweight, grads[1]))
    return max(error(a, b) for a, b in pairs)


def rows(s: Shape) -> Iterator[Row]:
    """The lines of this op."""
    yield from _row_kernel(s)
    yield from _heads(s)


def _row_kernel(s: Shape) -> Iterator[Row]:
    m, vocabulary, theirs = 2048, s.vocabulary, liger("cross_entropy")
    logits, coef = draw(m, vocabulary), draw(m, dtype=torch.float32)
    labels = torch.randint(0, vocabulary, (m,), device="cuda")
    stats = RowStats(*(torch.empty(m, device="cuda") for _ in range(4)))
    others = {}
    if theirs:
        others = {
            "liger": lambda: theirs.cross_entropy_forward(logits, labels, None, -100, 0.0, 0.0, "mean", None, False)
        }
    yield Row(
        "cross_entropy rows", f"{m}x{vocabulary}",
        lambda: cross_entropy_rows_(logits, labels, coef, Head(), stats), 2 * 2 * m * vocabulary, lambda: check(s),
        others, uncaptured=("liger",),
    )  # fmt: skip
    walked = draw(m, vocabulary + 64)[:, : vocabulary + 1]  # an odd number of logits cannot be shared
    yield Row(
        "cross_entropy rows, walked", f"{m}x{vocabulary + 1}",
        lambda: cross_entropy_rows_(walked, labels, coef, Head(), stats), 2 * 2 * m * (vocabulary + 1),
    )  # fmt: skip
    yield Row(
        "cross_entropy rows, no grad", f"{m}x{vocabulary}",
        lambda: cross_entropy_rows_(logits, labels, None, Head(), stats), 2 * m * vocabulary,
    )  # fmt: skip


def _heads(s: Shape) -> Iterator[Row]:
    t, vocabulary, fused = s.tokens, s.vocabulary, liger("fused_linear_cross_entropy")
    hidden, weight = draw(t, s.hidden), draw(vocabulary, s.hidden, scale=s.hidden**-0.5)
    labels = torch.randint(0, vocabulary, (t,), device="cuda")
    scale = torch.tensor(1 / t, device="cuda")
    chunk = 2048
    buffer, dh = torch.empty(chunk, vocabulary, device="cuda", dtype=torch.bfloat16), torch.empty_like(hidden)

    def products(count: int) -> None:
        for a in range(0, count, chunk):
            torch.mm(hidden[a : a + chunk], weight.t(), out=buffer)
            torch.mm(buffer, weight, out=dh[a : a + chunk])

    others = {}
    if fused:
        leaf = hidden.detach().requires_grad_()  # else Liger makes no gradient
        others = {"liger": torch.no_grad()(lambda: fused.fused_linear_cross_entropy_forward(leaf, weight, labels))}
    shape = f"{t}x{s.hidden}->{vocabulary}"
    yield Row(
        "linear_cross_entropy", shape, lambda: linear_cross_entropy(hidden, weight, labels, scale=scale),
        others=others, floor=lambda: products(t), uncaptured=("liger",),
    )  # fmt: skip
    half = torch.arange(0, t, 2, device="cuda")
    picked = labels[half]
    yield Row(
        "linear_cross_entropy, half trained", shape,
        lambda: linear_cross_entropy(hidden, weight, picked, rows=half, scale=scale), floor=lambda: products(t // 2),
    )  # fmt: skip

    def forward_products() -> None:
        for a in range(0, t, chunk):
            torch.mm(hidden[a : a + chunk], weight.t(), out=buffer)

    yield Row("linear_logprobs", shape, lambda: linear_logprobs(hidden, weight, labels), floor=forward_products)
