"""AdamW against torch.optim, with clipping, decay and rate per tensor, rounded copies, and a checkpoint."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import FusedAdamW

SHAPES = [(5, 3), (7,), (40, 60), (16, 16), (1,)]


@pytest.mark.parametrize("shapes", [SHAPES, [(16, 64), (32, 16)]], ids=["awkward", "aligned"])
def test_equals_torch(draw, near, device, shapes):
    params = [draw(*s) for s in shapes]
    grads = [torch.zeros_like(p) for p in params]
    theirs = [torch.nn.Parameter(p.clone()) for p in params]
    decay = [0.1 if p.dim() > 1 else 0.0 for p in params]
    scales = [1.0 + i for i in range(len(params))]
    groups = [{"params": [p], "weight_decay": d, "lr": 1e-2 * s} for p, d, s in zip(theirs, decay, scales, strict=True)]
    stock = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-6)
    mine = FusedAdamW(params, grads, betas=(0.9, 0.99), eps=1e-6, weight_decay=decay, lr_scales=scales)
    lr = torch.tensor(1e-2, device=device)
    for _ in range(5):
        for g, p in zip(grads, theirs, strict=True):
            g.copy_(draw(*g.shape))
            p.grad = g.clone()
        norm = mine.grad_norm()
        want = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        near(norm, want, torch.float32)
        mine.step(lr, clip=mine.clip_factor(norm, 0.5))
        stock.step()
    for p, q in zip(params, theirs, strict=True):
        near(p, q.detach(), torch.float32, factor=2)
    assert mine.step_count == 5


def test_first_step_of_slow_moments_is_exact(device):
    # 1 - 0.999^1 in fp32 loses 4 digits unless it is made by expm1
    p, g = torch.zeros(16, device=device), torch.full((16,), 1e-3, device=device)
    FusedAdamW([p], [g], eps=0.0).step(torch.tensor(1.0, device=device))
    assert torch.allclose(p, torch.full_like(p, -1.0), rtol=1e-6)


def test_rounded_copies_and_low_precision(draw, device, dtype):
    params, copies = (
        [draw(33), draw(4, 4)],
        [torch.empty(33, device=device, dtype=dtype), torch.empty(4, 4, device=device, dtype=dtype)],
    )
    optimizer = FusedAdamW(params, [draw(33).to(dtype), draw(4, 4).to(dtype)], copies=copies)
    optimizer.step(torch.tensor(0.1, device=device))
    for p, c in zip(params, copies, strict=True):
        assert torch.equal(c, p.to(dtype))


def test_zero_gradients_clip_to_one(device):
    p = [torch.ones(3, device=device)]
    optimizer = FusedAdamW(p, [torch.zeros(3, device=device)])
    factor = optimizer.clip_factor(optimizer.grad_norm(), 1.0)
    assert factor == 1
    optimizer.step(torch.tensor(0.1, device=device), clip=factor)
    assert torch.equal(p[0], torch.ones(3, device=device))


def test_checkpoint_continues(draw, device):
    start, grad, lr = draw(8), draw(8), torch.tensor(0.1, device=device)
    a = FusedAdamW([start.clone()], [grad])
    a.step(lr)
    b = FusedAdamW([a.params[0].clone()], [grad])
    b.load_state_dict(a.state_dict())
    a.step(lr)
    b.step(lr)
    assert torch.equal(a.params[0], b.params[0])


def test_new_gradient_buffers(draw, device):
    p, g1, g2 = torch.zeros(4, device=device), draw(4), draw(4)
    optimizer = FusedAdamW([p], [g1], betas=(0.0, 0.0), eps=0.0)
    optimizer.set_grads([g2])
    optimizer.step(torch.tensor(1.0, device=device))
    assert torch.allclose(p, -g2.sign())


def test_refuses_mixed_dtypes_and_shapes(draw):
    with pytest.raises(ValueError, match="one dtype"):
        FusedAdamW([draw(2), draw(2).half()], [draw(2), draw(2)])
    with pytest.raises(ValueError, match="same shape"):
        FusedAdamW([draw(2)], [draw(3)])
