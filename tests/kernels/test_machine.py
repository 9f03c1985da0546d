"""Rows that several programs share, as they were compiled for a card: only there do programs run side by side."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import pytest
import torch

pytest.importorskip("triton")

from tests.kernels.ahead import record
from tests.kernels.machine import run

ce, tables = (importlib.import_module(f"nbtune_kernels.{name}") for name in ("cross_entropy", "tables"))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """`cross_entropy_rows_` by the compiled kernel, 512 logits a program."""

    def call(logits, labels, coef, head, order=1, block=512):
        tables.set_entry("cross_entropy_shared", 90, {"block": block})
        stats = ce.RowStats(*(torch.full((logits.shape[0],), float("nan")) for _ in range(4)))
        with record(90, monkeypatch) as kept:
            ce.cross_entropy_rows_(logits, labels, coef, head, stats)
        assert [launch.name for launch in kept] == ["cross_entropy_shared._shared_kernel"]
        run(kept[0], logits.shape[0] * -(-logits.shape[1] // block), order=order)
        return stats

    yield call
    tables.set_entry("cross_entropy_shared", 90, None)


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
    """As the table has it: 16 programs a row, 16 bytes a load."""
    logits, labels = (torch.randn(3, 128256) * 3).bfloat16(), torch.tensor([128255, -100, 70000])
    logits[2, 40000:60000] = float("-inf")
    coef, got = torch.randn(3), logits.clone()
    stats = rows(got, labels, coef, ce.Head(), block=tables.DEFAULT["cross_entropy_shared"]["block"])
    compare(near, got, stats, logits, labels, coef, ce.Head(), torch.bfloat16)
