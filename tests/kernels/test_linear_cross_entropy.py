"""The fused head against autograd on whole logits: chunks, row indices, weights, every option."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import linear_cross_entropy, linear_cross_entropy_loss
from nbtune_kernels.cross_entropy import Head
from nbtune_kernels.linear_cross_entropy import chunk_rows, reference

H, V = 24, 150
OPTIONS = [
    {},
    {"softcap": 4.0},
    {"logit_scale": 0.3, "z_loss": 1e-2},
    {"softcap": 5.0, "logit_scale": 0.5, "z_loss": 1e-3, "label_smoothing": 0.1},
]


def case(draw, dtype, device, n=11):
    hidden, weight = draw(n, H, dtype=dtype), draw(V, H, dtype=dtype, scale=H**-0.5)
    labels = torch.randint(0, V, (n,), device=device)
    labels[1::4] = -100
    return hidden, weight, labels


def truth(hidden, weight, labels, options, bias=None, token_weights=None, scale=1.0):
    leaves = [t.double().requires_grad_() for t in (hidden, weight, bias) if t is not None]
    head = Head(**{"softcap": 0.0, **options})
    loss = reference(
        leaves[0], leaves[1], labels, scale=scale, bias=leaves[2] if bias is not None else None,
        token_weights=token_weights, head=head,
    )  # fmt: skip
    return loss.detach(), torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("chunk", [0, 4])
def test_equals_autograd(draw, near, device, dtype, options, chunk):
    hidden, weight, labels = case(draw, dtype, device)
    bias, weights = draw(V, dtype=dtype), draw(11).abs()
    scale = torch.tensor(0.125, device=device)
    loss, grads = truth(hidden, weight, labels, options, bias, weights, 0.125)
    out = linear_cross_entropy(
        hidden, weight, labels, bias=bias, token_weights=weights, scale=scale, chunk=chunk, need_dweight=True, **options
    )
    near(out.loss, loss, dtype)
    for mine, want in zip((out.dhidden, out.dweight, out.dbias), grads, strict=True):
        near(mine, want, dtype, factor=3)


def test_row_indices_drop_the_rest(draw, near, device, dtype):
    hidden, weight, labels = case(draw, dtype, device)
    kept = (labels != -100).nonzero()[:, 0]
    rows = torch.cat((kept, kept.new_zeros(5)))  # a bucket: padding names row 0, which is trained
    picked = torch.cat((labels[kept], labels.new_full((5,), -100)))
    whole = linear_cross_entropy(hidden, weight, labels, scale=0.5, need_dweight=True)
    some = linear_cross_entropy(hidden, weight, picked, rows=rows, scale=0.5, need_dweight=True, chunk=6)
    near(some.loss, whole.loss, torch.float32)
    near(some.dhidden, whole.dhidden, dtype)
    near(some.dweight, whole.dweight, dtype, factor=2)
    assert (some.dhidden[labels == -100] == 0).all()
    assert some.losses.shape == (len(rows),)
    near(some.entropy, whole.entropy, torch.float32)
    assert some.correct == whole.correct


def test_all_ignored_is_zero_not_nan(draw, device, dtype):
    hidden, weight, labels = case(draw, dtype, device)
    out = linear_cross_entropy(hidden, weight, labels.fill_(-100), scale=0.1, need_dweight=True, softcap=3.0)
    assert out.loss == 0
    for t in (out.losses, out.entropy, out.correct, out.dhidden, out.dweight):
        assert (t == 0).all()


def test_statistics(draw, near, device):
    hidden, weight, labels = case(draw, torch.float32, device, n=12)
    logits = hidden @ weight.t()
    labels[::2] = logits.argmax(-1)[::2]
    out = linear_cross_entropy(hidden, weight, labels, chunk=5)
    kept = labels != -100
    assert out.correct == ((logits.argmax(-1) == labels) & kept).sum()
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy()[kept].sum()
    near(out.entropy, entropy, torch.float32)


def test_only_what_is_asked(draw, device):
    hidden, weight, labels = case(draw, torch.float32, device)
    out = linear_cross_entropy(hidden, weight, labels, need_dhidden=False)
    assert out.dhidden is None
    assert out.dweight is None
    assert out.dbias is None
    assert out.loss > 0


def test_grad_scale_leaves_the_loss(draw, near, device):
    hidden, weight, labels = case(draw, torch.float32, device)
    one = linear_cross_entropy(hidden, weight, labels)
    big = linear_cross_entropy(hidden, weight, labels, grad_scale=torch.tensor(1024.0, device=device))
    assert torch.equal(one.loss, big.loss)
    near(big.dhidden, 1024 * one.dhidden.double(), torch.float32)


def test_differentiable(draw, near, device):
    hidden, weight, labels = case(draw, torch.float32, device)
    h, w = hidden.view(1, 11, H).requires_grad_(), weight.requires_grad_()
    loss, losses, _, _ = linear_cross_entropy_loss(h, w, labels.view(1, 11), scale=0.25)
    got = torch.autograd.grad(2 * loss, (h, w))
    want = torch.autograd.grad(2 * reference(h, w, labels, scale=0.25), (h, w))
    for a, b in zip(got, want, strict=True):
        near(a, b, torch.float32)
    assert not losses.requires_grad


def test_half_precision_survives_many_items_and_loss_scaling(draw, near, device):
    """1 / num_items alone is below fp16's smallest number for most of softmax; a loss scale alone above its largest."""
    hidden, weight, labels = case(draw, torch.float16, device)
    h = hidden.clone().requires_grad_()
    loss, *_ = linear_cross_entropy_loss(h, weight, labels, scale=1e-6)
    (2.0**17 * loss).backward()
    want_loss, (want, _) = truth(hidden, weight, labels, {}, scale=1e-6)
    near(loss, want_loss, torch.float16)
    near(h.grad, 2.0**17 * want, torch.float16, factor=3)


def test_frozen_head_makes_no_weight_gradient(draw, device):
    hidden, weight, labels = case(draw, torch.float32, device)
    h = hidden.requires_grad_()
    loss, *_ = linear_cross_entropy_loss(h, weight, labels)
    loss.backward()
    assert h.grad is not None
    assert weight.grad is None


def test_chunks_fit_the_budget():
    cuda = torch.device("cuda")
    assert chunk_rows(8192, 128256, 2, cuda) == 2048
    assert chunk_rows(100, 128256, 2, cuda) == 100
    assert chunk_rows(2500, 128256, 2, cuda) == 1280  # two even chunks, not one full and a rest
    assert chunk_rows(10, 10**9, 4, cuda) == 1
