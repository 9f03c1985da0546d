"""LoRA's grouped products against peft's arithmetic and autograd."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import grouped_tn, lora_add_, lora_dxa, lora_grads, lora_xa
from nbtune_kernels.lora import reference, uses_kernel

SCALINGS = [2.0, 1.0, 0.5, 0.25]


def case(draw, dtype, tokens, width, outs, ranks):
    x = draw(2, tokens, width, dtype=dtype)
    a = draw(sum(ranks), width, dtype=dtype, scale=width**-0.5)
    bs = [draw(o, r, dtype=dtype) for o, r in zip(outs, ranks, strict=True)]
    dys = list(draw(2, tokens, sum(outs), dtype=dtype).split(outs, -1))  # slices of one buffer
    return x, a, bs, dys


SHAPES = [
    (40, 200, [130, 40, 24], [8, 16, 5]),
    (33, 48, [130, 140], [16, 16]),
    (5, 64, [64], [64]),
    (1, 17, [7, 9, 3, 1], [1, 2, 3, 4]),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}-{len(s[2])}")
def test_products_and_gradients(draw, near, dtype, shape):
    x, a, bs, dys = case(draw, dtype, *shape)
    ranks = shape[3]
    scalings = SCALINGS[: len(ranks)]
    # truth: autograd through peft's arithmetic, projection by projection, without the frozen weight
    xd = x.double().requires_grad_()
    ads = [t.double().requires_grad_() for t in a.split(ranks)]
    bds = [b.double().requires_grad_() for b in bs]
    ys = [
        reference(xd, xd.new_zeros(b.shape[0], x.shape[-1]), ai, b, s)
        for ai, b, s in zip(ads, bds, scalings, strict=True)
    ]
    want = torch.autograd.grad(ys, [xd, *ads, *bds], [d.double() for d in dys])
    n = len(ranks)

    xa = lora_xa(x, a)
    near(xa, x.double() @ a.double().t(), dtype)
    dxa = lora_dxa(dys, bs, scalings)
    da, dbs = lora_grads(x, xa, dxa, dys, ranks, scalings, dtype=torch.float32)
    near(dxa @ a, want[0], dtype, factor=2)
    near(da, torch.cat(want[1 : 1 + n]), dtype, factor=2)
    for got, truth in zip(dbs, want[1 + n :], strict=True):
        near(got, truth, dtype, factor=2)
        assert got.dtype == torch.float32
    start = 0
    for y, b, s, r in zip(ys, bs, scalings, ranks, strict=True):
        mine = x.new_zeros(x.shape[0] * x.shape[1], b.shape[0])
        lora_add_(mine, xa.flatten(0, 1)[:, start : start + r], b, s)
        near(mine, y.detach().flatten(0, 1), dtype, factor=2)
        start += r


def test_gradients_accumulate_in_given_buffers(draw, near, dtype):
    x, a, bs, dys = case(draw, dtype, 20, 32, [48, 16], [4, 4])
    xa, dxa = lora_xa(x, a), lora_dxa(dys, bs, [1.0, 1.0])
    da, dbs = lora_grads(x, xa, dxa, dys, [4, 4], [1.0, 1.0], dtype=torch.float32)
    flat = torch.zeros(da.numel() + sum(d.numel() for d in dbs), device=x.device)
    outs = [p.view(g.shape) for p, g in zip(flat.split([g.numel() for g in (da, *dbs)]), (da, *dbs), strict=True)]
    for _ in range(2):
        lora_grads(x, xa, dxa, dys, [4, 4], [1.0, 1.0], out_da=outs[0], out_dbs=outs[1:], accumulate=True)
    for mine, once in zip(outs, (da, *dbs), strict=True):
        near(mine, 2 * once.double(), torch.float32)
    with pytest.raises(ValueError, match="accumulate"):
        lora_grads(x, xa, dxa, dys, [4, 4], [1.0, 1.0], accumulate=True)


def test_same_bits_twice(draw, dtype):
    x, a, bs, dys = case(draw, dtype, 40, 64, [96], [8])
    xa, dxa = lora_xa(x, a), lora_dxa(dys, bs, [2.0])
    first, second = (lora_grads(x, xa, dxa, dys, [8], [2.0]) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1][0], second[1][0])


def test_writes_beside_the_input(draw, dtype):
    x, a, _, _ = case(draw, dtype, 9, 32, [8], [8])
    wide = torch.empty(2, 9, 48, dtype=dtype, device=x.device)
    wide[..., :32] = x
    xa = lora_xa(wide[..., :32], a, out=wide[..., 32:40])
    assert torch.equal(xa, lora_xa(x, a))
    assert torch.equal(wide[..., :32], x)
    dy = draw(2, 9, 8, dtype=dtype)
    b = draw(8, 8, dtype=dtype)
    lora_dxa([dy], [b], [1.0], out=wide[..., 40:])
    assert torch.equal(wide[..., 40:], lora_dxa([dy], [b], [1.0]))


def test_writes_once_more(draw, dtype):
    x, a, _, _ = case(draw, dtype, 21, 40, [8], [12])
    also = torch.empty(2, 21, 12, dtype=dtype, device=x.device)
    assert torch.equal(lora_xa(x, a, also=also), also)


def test_columns_are_multiplied_onto_the_product(draw, near, dtype):
    u, v, columns = draw(50, 3, dtype=dtype), draw(50, 20, dtype=dtype), draw(20)
    truth = u.double().t() @ v.double()
    outs = [torch.ones(s, device=u.device) for s in ((3, 20), (20, 3), (3, 20))]
    grouped_tn(
        [u] * 3, [v] * 3, outs, [1.0, 2.0, 1.0], [False, True, False], accumulate=True, columns=[columns, columns, None]
    )
    near(outs[0], 1 + truth * columns.double(), dtype, factor=2)
    near(outs[1], 1 + (2 * truth * columns.double()).t(), dtype, factor=2)
    near(outs[2], 1 + truth, dtype, factor=2)


def test_transposed_outputs(draw, near):
    u, v = draw(50, 3), draw(50, 20)
    out, flipped = (torch.empty(s, device=u.device) for s in ((3, 20), (20, 3)))
    grouped_tn([u, u], [v, v], [out, flipped], [1.0, 3.0], [False, True])
    near(out, u.double().t() @ v.double(), torch.float32)
    near(flipped, 3 * v.double().t() @ u.double(), torch.float32)


def test_more_groups_than_a_launch_takes(draw, near, dtype):
    us, vs = [draw(33, r, dtype=dtype) for r in (4, 8, 2, 4, 16, 4)], [draw(33, n, dtype=dtype) for n in range(10, 16)]
    outs = [torch.empty(u.shape[1], v.shape[1], device=u.device) for u, v in zip(us, vs, strict=True)]
    grouped_tn(us, vs, outs, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [False] * 6)
    for i, (u, v, out) in enumerate(zip(us, vs, outs, strict=True)):
        near(out, (i + 1) * u.double().t() @ v.double(), dtype)


def test_never_tl_dot_without_tensor_cores(monkeypatch):
    pytest.importorskip("triton")
    from nbtune_kernels import _runtime, lora

    class Card(torch.Tensor):
        is_cuda = True

    x = torch.zeros(4096, 64, dtype=torch.float16).as_subclass(Card)
    monkeypatch.setattr(lora, "INTERPRETED", False)
    monkeypatch.setattr(_runtime, "INTERPRETED", False)
    for capability, wanted in ((70, False), (75, False), (80, True), (90, True)):
        for module in (_runtime, lora):
            monkeypatch.setattr(module, "compute_capability", lambda _, c=capability: c)
        for name in ("lora_xa", "lora_dxa", "grouped_tn"):
            assert uses_kernel(name, [x], [16]) is wanted
