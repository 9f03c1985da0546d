"""The recipe "add a kernel", carried out on a copy of the tree: one new file, checked the four ways that others are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe import changed, copy_tree, python

pytest.importorskip("triton")

SQUARED_RELU = '''\
"""Squared ReLU (So et al. 2021, arXiv 2109.08668).

    y = max(0, x)^2
    backward: dx = 2 max(0, x) dy
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, fresh, jit, op, tl, use_triton


def reference(x: Tensor) -> Tensor:
    """Plain torch, differentiable: the truth the kernel is tested against."""
    return torch.relu(x.float()).square().to(x.dtype)


@jit
def _kernel(x_ptr, dy_ptr, y_ptr, n, BACKWARD: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.maximum(tl.load(x_ptr + at, at < n, other=0.0).to(tl.float32), 0.0)
    y = 2 * x * tl.load(dy_ptr + at, at < n, other=0.0).to(tl.float32) if BACKWARD else x * x
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), at < n)


@op("squared_relu(Tensor x, Tensor? dy) -> Tensor", lambda x, dy: torch.empty_like(x))
def _squared_relu(x, dy):
    if not use_triton(x):
        return reference(x) if dy is None else (2 * torch.relu(x.float()) * dy.float()).to(x.dtype)
    x, y = x.contiguous(), fresh(x)
    dy = x if dy is None else dy.contiguous()
    _kernel[(cdiv(x.numel(), 1024),)](x, dy, y, x.numel(), BACKWARD=dy is not x, BLOCK=1024, **FUSED, num_warps=4)
    return y


def squared_relu(x: Tensor, dy: Tensor | None = None) -> Tensor:
    """`max(0, x)^2`, or with `dy` the gradient of x."""
    return _squared_relu(x, dy)
'''
AGREES = """
import torch
from nbtune_kernels import _runtime
from nbtune_kernels.squared_relu import reference, squared_relu

print(_runtime.INTERPRETED)
for dtype in (torch.float32, torch.float16):
    x, dy = torch.randn(3, 700).to(dtype).requires_grad_(), torch.randn(3, 700).to(dtype)
    torch.testing.assert_close(squared_relu(x.detach()), reference(x).detach())
    (wanted,) = torch.autograd.grad(reference(x), x, dy)
    torch.testing.assert_close(squared_relu(x.detach(), dy), wanted)
assert torch.ops.nbtune.squared_relu(torch.empty(2, 3, device="meta"), None).shape == (2, 3)
"""
COMPILES = """
import pytest, torch
from nbtune_kernels.squared_relu import squared_relu
from tests.kernels.ahead import compile_for, record

for capability, dtype in ((75, torch.float16), (90, torch.bfloat16)):
    with pytest.MonkeyPatch.context() as patch, record(capability, patch) as launches:
        squared_relu(torch.empty(64, 256, dtype=dtype))
    (launch,) = launches
    assert launch.name == "squared_relu._kernel" and f"sm_{capability}" in compile_for(launch, capability)
"""


@pytest.mark.slow
def test_a_new_kernel_is_one_file(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    (tree / "kernels/nbtune_kernels/squared_relu.py").write_text(SQUARED_RELU, encoding="utf-8")
    plain = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    assert python(tree, "-c", AGREES, **plain) == "False\n"
    assert python(tree, "-c", AGREES, TRITON_INTERPRET="1") == "True\n"
    python(tree, "-c", COMPILES, **plain)
    assert changed(tree) == ["kernels/nbtune_kernels/squared_relu.py"]
