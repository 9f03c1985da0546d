"""Embedding against torch, and the gradient of the table."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels import embedding, embedding_backward
from nbtune_kernels._runtime import use_triton


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_equals_torch(draw, near, device, dtype, scale):
    weight, dy = draw(11, 16, dtype=dtype), draw(2, 6, 16, dtype=dtype)
    ids = torch.tensor([[0, 3, 3, 10, 3, 0], [1, 2, 3, 4, 5, 0]], device=device)
    table = weight.double().requires_grad_()
    want = torch.nn.functional.embedding(ids, table) * scale
    (dw,) = torch.autograd.grad(want, table, dy.double())
    near(embedding(ids, weight, scale=scale), want.detach(), dtype)
    near(embedding_backward(dy, ids, 11, scale=scale), dw, torch.float32, factor=2)


def test_padding_gets_nothing(draw, device):
    ids = torch.tensor([1, 2, 1], device=device)
    dw = embedding_backward(draw(3, 4), ids, 5, padding=1)
    assert dw[1].abs().sum() == 0
    assert dw[2].abs().sum() > 0


def test_an_id_outside_the_table(draw, device):
    """An error on a CPU; on a GPU, where an error would end the process, a row that shows in the loss."""
    ids, weight = torch.tensor([1, 5, -1], device=device), draw(5, 4)
    if use_triton(weight):
        assert embedding(ids, weight).isnan().all(-1).tolist() == [False, True, True]
    else:
        with pytest.raises(IndexError):
            embedding(ids, weight)
