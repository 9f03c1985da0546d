"""Log-probabilities of labels against log_softmax, with their gradient."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import linear_logprobs, linear_logprobs_of

from tests.support.every import every

H, V, N = 24, 150, 11


@pytest.mark.parametrize("options", [{}, {"softcap": 4.0}, {"logit_scale": 0.3}], ids=["plain", "softcap", "scale"])
@pytest.mark.parametrize("chunk", [0, 4])
def test_equals_log_softmax(draw, near, device, dtype, options, chunk):
    hidden, weight, bias = draw(N, H, dtype=dtype), draw(V, H, dtype=dtype, scale=H**-0.5), draw(V, dtype=dtype)
    labels, dlogp = torch.randint(0, V, (N,), device=device), draw(N)
    labels[2] = -100
    leaves = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    z = (leaves[0] @ leaves[1].t() + leaves[2]) * options.get("logit_scale", 1.0)
    z = options["softcap"] * torch.tanh(z / options["softcap"]) if "softcap" in options else z
    want = torch.log_softmax(z, -1).gather(-1, labels.clamp(min=0)[:, None])[:, 0] * (labels != -100)
    grads = torch.autograd.grad(want, leaves, dlogp.double())

    mine = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    logprobs, entropy, correct = linear_logprobs_of(mine[0], mine[1], labels, bias=mine[2], chunk=chunk, **options)
    near(logprobs, want.detach(), dtype)
    for got, truth in zip(torch.autograd.grad(logprobs, mine, dlogp), grads, strict=True):
        near(got, truth, dtype, factor=3)
    near(entropy.sum(), torch.distributions.Categorical(logits=z).entropy()[labels != -100].sum().detach(), dtype)
    assert correct[2] == 0


def test_rows(draw, near, device):
    hidden, weight = draw(2, N, H).requires_grad_(), draw(V, H)
    rows = torch.tensor([3, 20, 7, 3], device=device)
    labels = torch.tensor([1, 2, 3, -100], device=device)
    got, _, _ = linear_logprobs_of(hidden, weight, labels, rows=rows, chunk=2)
    want, _, _ = linear_logprobs_of(hidden.flatten(0, 1)[rows], weight, labels)
    near(got, want, torch.float32)
    (a,), (b,) = (torch.autograd.grad(t.sum(), hidden, retain_graph=True) for t in (got, want))
    near(a, b, torch.float32)


def test_all_ignored(draw, device):
    hidden = draw(N, H).requires_grad_()
    logprobs, _, _ = linear_logprobs_of(hidden, draw(V, H), torch.full((N,), -100, device=device))
    (grad,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert (logprobs == 0).all()
    assert (grad == 0).all()


def test_keeps_only_vectors(draw, device):
    out = linear_logprobs(draw(N, H), draw(V, H), torch.zeros(N, dtype=torch.int64, device=device))
    assert every(t.shape == (N,) and t.dtype == torch.float32 for t in out)
