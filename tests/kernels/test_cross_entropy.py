"""The row kernel: losses, statistics and in-place gradients against autograd and torch's own cross-entropy."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels.cross_entropy import Head, RowStats, _rows_torch, cross_entropy_rows_, reference
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.conftest import DTYPES, INTERPRETED
from tests.support.every import every

HEADS = {
    "plain": Head(),
    "gemma2": Head(softcap=3.0),
    "cohere": Head(logit_scale=0.25),
    "z": Head(z_loss=1e-2),
    "smooth": Head(label_smoothing=0.1),
    "all": Head(softcap=4.0, logit_scale=0.5, z_loss=1e-2, label_smoothing=0.2),
}


def empty_stats(m: int, device: str) -> RowStats:
    return RowStats(*(torch.full((m,), float("nan"), device=device) for _ in range(4)))


def labels_for(m: int, vocabulary: int, device: str) -> torch.Tensor:
    labels = torch.randint(0, vocabulary, (m,), device=device)
    labels[::3] = -100
    return labels


WIDE = pytest.param(40000, marks=pytest.mark.skipif(INTERPRETED, reason="its programs wait for each other"))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("vocabulary", [7, 33, 5003, 34, 1006, WIDE])
def test_equals_autograd(draw, near, device, dtype, name, vocabulary):
    head, m = HEADS[name], 7
    logits, labels, coef = draw(m, vocabulary, dtype=dtype, scale=3.0), labels_for(m, vocabulary, device), draw(m)
    truth = logits.double().requires_grad_()
    z = truth * head.logit_scale
    z = head.softcap * torch.tanh(z / head.softcap) if head.softcap else z
    want = torch.nn.functional.cross_entropy(
        z, labels, reduction="none", label_smoothing=head.label_smoothing, ignore_index=-100
    )
    kept = labels != -100
    want = want + kept * head.z_loss * torch.logsumexp(z, -1) ** 2
    (grad,) = torch.autograd.grad(want, truth, coef.double())
    near(reference(logits, labels, head), want.detach(), torch.float32)

    out, lse = empty_stats(m, device), torch.logsumexp(z, -1).detach().float()
    mine = logits.clone()
    cross_entropy_rows_(mine, labels, coef, head, out)
    near(out.loss, want.detach(), torch.float32)
    near(out.lse, kept * lse.double(), torch.float32)
    p = torch.softmax(z, -1)
    near(out.entropy, (kept * torch.distributions.Categorical(probs=p).entropy()).detach(), torch.float32, factor=3)
    assert torch.equal(out.correct.bool(), (z.argmax(-1) == labels) & kept)
    near(mine, grad, dtype)
    assert (mine[::3] == 0).all()
    if not (head.z_loss or head.label_smoothing):
        again = logits.clone()
        cross_entropy_rows_(again, labels, coef, head, out, lse=lse)
        near(again, grad, dtype)


def test_without_coefficients_logits_stay(draw, device):
    logits, labels = draw(3, 50), labels_for(3, 50, device)
    before, out = logits.clone(), empty_stats(3, device)
    cross_entropy_rows_(logits, labels, None, Head(), out)
    assert torch.equal(logits, before)
    assert every(t.isfinite().all() for t in out)


def test_ignored_rows_are_zero_whatever_they_hold(device):
    logits = torch.full((4, 40), float("nan"), device=device)
    labels, out = torch.full((4,), -100, device=device), empty_stats(4, device)
    cross_entropy_rows_(logits, labels, torch.ones(4, device=device), Head(), out)
    assert (logits == 0).all()
    for t in (out.loss, out.entropy, out.correct):
        assert (t == 0).all()


def test_banned_and_huge_logits_stay_finite(device):
    logits = torch.zeros(2, 300, device=device)
    logits[0, 10:] = float("-inf")
    logits[1] = 8e4
    logits[1, 3] = 9e4
    labels, out = torch.tensor([0, 3], device=device), empty_stats(2, device)
    cross_entropy_rows_(logits, labels, torch.ones(2, device=device), Head(), out)
    assert torch.allclose(out.loss, torch.tensor([10.0, 1.0], device=device).log())
    assert torch.allclose(out.entropy, torch.tensor([10.0, 1.0], device=device).log(), atol=1e-5)
    assert logits.isfinite().all()
    assert out.correct.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize == 2], ids=str)
@pytest.mark.parametrize("vocabulary", [300, WIDE])
def test_banned_and_ignored_rows_in_16_bits(draw, near, device, dtype, vocabulary):
    """Rows that programs share: -inf over whole parts, in single places, and NaN where nothing is trained."""
    logits, labels = draw(4, vocabulary, dtype=dtype, scale=3.0), torch.tensor([5, 7, -100, 1], device=device)
    logits[0, 10:] = float("-inf")
    logits[1, ::3] = float("-inf")
    logits[2] = float("nan")
    want = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none", ignore_index=-100)
    p = torch.softmax(logits.double(), -1)
    grad = p.clone()
    grad[torch.arange(4), labels.clamp(min=0)] -= 1
    grad[2] = 0
    kept, out = torch.tensor([0, 1, 3], device=device), empty_stats(4, device)
    cross_entropy_rows_(logits, labels, torch.ones(4, device=device), Head(), out)
    near(out.loss, want, torch.float32)
    near(out.entropy[kept], torch.special.entr(p[kept]).sum(-1), torch.float32, factor=3)
    near(logits, grad, dtype)
    assert (logits[2] == 0).all()
    assert out.lse[2] == out.entropy[2] == out.correct[2] == out.loss[2] == 0


def test_other_ignore_index(draw, near, device):
    logits, out = draw(3, 20), empty_stats(3, device)
    labels = torch.tensor([-1, 4, 19], device=device)
    cross_entropy_rows_(logits.clone(), labels, None, Head(ignore_index=-1), out)
    near(out.loss, torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-1), torch.float32)


class _Made(TorchDispatchMode):
    """Notes the largest tensor that is made, bytes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        views = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        for one in out if isinstance(out, tuple) else (out,):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in views:
                self.most = max(self.most, one.untyped_storage().nbytes())
        return out


@pytest.mark.skipif(INTERPRETED, reason="the kernel takes them there")
def test_plain_torch_on_a_cpu_widens_some_rows_at_a_time() -> None:
    """A chunk of logits is 32 MiB, and five copies of it in fp32 would be 320, which no plan has for a head."""
    torch.manual_seed(0)
    logits, labels = torch.randn(340, 49152).bfloat16(), torch.randint(0, 49152, (340,))
    coef, out = torch.full((340,), 0.5), RowStats.empty(340, torch.device("cpu"))
    whole, stats = logits.clone(), RowStats.empty(340, torch.device("cpu"))
    _rows_torch(whole, labels, coef, Head(), stats, None)
    with _Made() as made:
        cross_entropy_rows_(logits, labels, coef, Head(), out)
    assert 0 < made.most <= 2**23
    torch.testing.assert_close(logits, whole, rtol=0, atol=0)
    for ours, theirs in zip(out, stats, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
