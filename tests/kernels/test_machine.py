"""Rows that several programs share, as they were compiled for a card: only there do programs run side by side."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import pytest
import torch

pytest.importorskip("triton")

from tests.kernels.ahead import record
from tests.kernels.machine import run

nk, ce, tables = (importlib.import_module(f"nbtune_kernels{name}") for name in ("", ".cross_entropy", ".tables"))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """`cross_entropy_rows_` by the compiled kernel, 512 logits a program."""

    def call(logits, labels, coef, head, order=1, block=512):
        monkeypatch.setitem(tables.TABLE, ("cross_entropy_shared", 90), {"block": block})
        tables.forget()
        stats = ce.RowStats(*(torch.full((logits.shape[0],), float("nan")) for _ in range(4)))
        with record(90, monkeypatch) as kept:
            ce.cross_entropy_rows_(logits, labels, coef, head, stats)
        assert [launch.name for launch in kept] == ["cross_entropy_shared._shared_kernel"]
        run(kept[0], range(logits.shape[0] * -(-logits.shape[1] // block))[::order])
        return stats

    yield call
    monkeypatch.undo()
    tables.forget()


def compare(near, got, stats, logits, labels, coef, head, dtype) -> None:
    want, out = logits.double(), ce.RowStats(*(torch.empty(len(labels)) for _ in range(4)))
    ce._rows_torch(want, labels, coef, head, out, None)
    near(got, want, dtype)
    near(stats.loss, out.loss, torch.float32, factor=2)
    near(stats.lse, out.lse, torch.float32, factor=2)
    near(stats.entropy, out.entropy, torch.float32, factor=4)
    assert torch.equal(stats.correct, out.correct)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocabulary", [34, 600, 1536])
@pytest.mark.parametrize("order", [1, -1])
def test_shared_rows(rows, near, dtype, vocabulary, order):
    logits, labels = (torch.randn(4, vocabulary) * 3).to(dtype), torch.randint(0, vocabulary, (4,))
    labels[1] = -100
    coef, got = torch.randn(4), logits.clone()
    stats = rows(got, labels, coef, ce.Head(), order)
    compare(near, got, stats, logits, labels, coef, ce.Head(), dtype)


@pytest.mark.parametrize(
    "head",
    [ce.Head(4.0, 0.5, 1e-2, 0.2), ce.Head(logit_scale=1 / 16), ce.Head(softcap=30.0)],
    ids=["all", "scale", "cap"],
)
def test_heads(rows, near, head):
    logits, labels = (torch.randn(3, 1030) * 5).bfloat16(), torch.tensor([1029, 3, -100])
    coef, got = torch.randn(3), logits.clone()
    stats = rows(got, labels, coef, head)
    compare(near, got, stats, logits, labels, coef, head, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_banned_tokens_and_ignored_rows(rows, near, dtype):
    """-inf over all of a thread or part once gave NaN: a product fused into a difference is not 0 between equals."""
    logits, labels = (torch.randn(4, 1200) * 3).to(dtype), torch.tensor([5, 7, -100, 1])
    logits[0, 10:] = float("-inf")
    logits[1, ::3] = float("-inf")
    logits[2] = float("nan")
    logits[3, 400:1100] = float("-inf")
    coef, got = torch.ones(4), logits.clone()
    stats = rows(got, labels, coef, ce.Head())
    assert torch.equal(got[2], torch.zeros(1200, dtype=dtype))
    logits[2] = 0
    compare(near, got, stats, logits, labels, coef, ce.Head(), dtype)


@pytest.mark.slow
def test_a_whole_vocabulary(rows, near):
    """16 programs a row, 16 bytes a load."""
    logits, labels = (torch.randn(3, 128256) * 3).bfloat16(), torch.tensor([128255, -100, 70000])
    logits[2, 40000:60000] = float("-inf")
    coef, got = torch.randn(3), logits.clone()
    stats = rows(got, labels, coef, ce.Head(), block=8192)
    compare(near, got, stats, logits, labels, coef, ce.Head(), torch.bfloat16)


def far(width: int, last: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Rows beyond 2^31 elements, of which only the last ones are ever touched: the rest takes no memory."""
    x = torch.empty(2**31 // width + last, width, dtype=dtype)
    x[-last:] = torch.randn(last, width)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "act_mul", "shared", "walked"])
def test_rows_beyond_2_to_31_elements(monkeypatch: pytest.MonkeyPatch, near, name):
    """The last rows of tensors with more elements than an int32 counts, each kernel's last programs only."""
    width, last = 4096, 2
    w = torch.randn(width).bfloat16()
    x, dy = far(width, last), far(width, last)
    end, rstd = slice(-last, None), torch.ones(len(x))
    labels, coef = torch.full((len(x),), 7), torch.ones(len(x))
    short = [x[end].clone(), dy[end].clone()]
    stats = ce.RowStats(*(torch.zeros(len(x)) for _ in range(4)))
    out = torch.empty_like(x)
    with record(90, monkeypatch) as kept:
        if name == "rms_norm":
            nk.rms_norm(x, w, 1e-5, out=out)
            nk.rms_norm_backward(dy, x, w, rstd, out=x)
        elif name == "layer_norm":
            out, *_ = nk.layer_norm(x, w, w, 1e-5)
        elif name == "act_mul":
            nk.act_mul(x, dy, out=out)
            nk.act_mul_backward(out, x, dy, out_dgate=x, out_dup=dy)
        else:
            lse = None if name == "shared" else torch.logsumexp(short[0].float(), -1).new_zeros(len(x))
            if lse is not None:
                lse[end] = torch.logsumexp(short[0].float(), -1)
            ce.cross_entropy_rows_(x, labels, coef, ce.Head(), stats, lse=lse)
    for launch in kept:
        of_a_row = -(-width // launch.arguments.get("BLOCK", width))
        run(launch, range((len(x) - last) * of_a_row, len(x) * of_a_row))
    if name == "rms_norm":
        near(out[end], nk.rms_norm(short[0], w, 1e-5)[0], torch.bfloat16)
        near(x[end], nk.rms_norm_backward(short[1], short[0], w, rstd[end])[0], torch.bfloat16)
    elif name == "layer_norm":
        near(out[end], nk.layer_norm(short[0], w, w, 1e-5)[0], torch.bfloat16)
    elif name == "act_mul":
        h = nk.act_mul(*short)
        near(out[end], h, torch.bfloat16)
        for got, want in zip((x, dy), nk.act_mul_backward(h, *short)[-2:], strict=True):
            near(got[end], want, torch.bfloat16)
    else:
        want = short[0].float()
        ce._rows_torch(
            want, labels[end], coef[end], ce.Head(), ce.RowStats(*(torch.empty(last) for _ in range(4))), None
        )
        near(x[end], want, torch.bfloat16)
