"""Products by whichever library of the CPU: the same numbers, whatever the strides."""

import importlib

import pytest
import torch
from nbtune_kernels import product, product_into, product_onto
from nbtune_kernels.products import _by_onednn, onednn_is_faster

PRODUCTS = importlib.import_module("nbtune_kernels.products")

SHAPES = [(1, 8, 8), (15, 24, 40), (16, 24, 40), (40, 24, 1), (33, 1, 7), (70, 130, 64), (0, 8, 8), (20, 8, 0)]


@pytest.fixture(autouse=True)
def _narrow_ones_too(monkeypatch):
    monkeypatch.setattr(PRODUCTS, "_NARROWEST", 1)
    monkeypatch.setattr(PRODUCTS, "_BESIDE", 2**12)  # wide results come in parts


def _strided(rows, columns):
    """Yield matrices of that size with their numbers next to each other, in columns, in slices of wider and taller."""
    yield torch.randn(rows, columns)
    yield torch.randn(columns, rows).t()
    yield torch.randn(rows + 3, columns + 5)[3:, 5:]
    yield torch.randn(columns + 5, rows + 3)[5:, 3:].t()


@pytest.mark.parametrize(("t", "k", "o"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_they_are_those_of_double_precision(t, k, o, dtype):
    slack = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for x in _strided(t, k):
        for w in _strided(o, k):
            x, w = x.to(dtype), w.to(dtype)
            truth = x.double() @ w.double().t()
            near = {"rtol": slack, "atol": slack * max(1, k) ** 0.5}
            got = product(x, w)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), truth, **near)
            room, bias = torch.full((t, o + 4), 7.0, dtype=dtype), torch.randn(o, dtype=dtype)
            product_into(room[:, 2 : 2 + o], x, w)
            torch.testing.assert_close(room[:, 2 : 2 + o].double(), truth, **near)
            product_into(room[:, 2 : 2 + o], x, w, bias)
            torch.testing.assert_close(room[:, 2 : 2 + o].double(), truth + bias.double(), **near)
            assert (room[:, :2] == 7).all()
            assert (room[:, 2 + o :] == 7).all()
            residual = torch.randn(t, o + 1, dtype=dtype)[:, :o]
            onto = product_onto(residual, x, w, 0.5)
            torch.testing.assert_close(onto.double(), residual.double() + truth / 2, **near)


def test_a_token_by_itself_and_what_is_traced_go_the_usual_way():
    x, w = torch.randn(64, 32), torch.randn(48, 32)
    assert _by_onednn(x, w) == onednn_is_faster()
    assert not _by_onednn(x[:1], w)
    assert not _by_onednn(x.double(), w.double())
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert product(torch.empty(64, 32), torch.empty(48, 32)).shape == (64, 48)
