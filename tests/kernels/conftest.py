"""The same tests run thrice: plain torch on the CPU, Triton's interpreter, and a GPU.

The interpreter needs TRITON_INTERPRET=1 before the kernels are imported, so `test_interpreter.py` runs this folder
again in a process of its own; tests/gpu does so with NBTUNE_TEST_DEVICE=cuda. bf16 is wrong in the interpreter
(arithmetic on raw bits), so it is tested on the CPU and on GPUs.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FEW = int(os.environ.get("NBTUNE_TEST_FEW", 0))  # of a test's cases, where they are many; 0: all
DEVICE = os.environ.get("NBTUNE_TEST_DEVICE", "cpu")
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}

# These start processes or compile by themselves: once is enough.
ONCE = ["test_interpreter.py", "test_compile_ahead.py", "test_machine.py"]
collect_ignore = ONCE if INTERPRETED or DEVICE != "cpu" else []


# The interpreter takes milliseconds a program. What these add in fp16 is torch's own product around the row kernel, or
# the cast that the other norm's tests have.
FP32_ONLY = ("test_linear_cross_entropy", "test_linear_logprobs", "test_layer_norm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fewer dtypes for the interpreter; it is numpy, which warns of infinities that a kernel masks."""
    if not INTERPRETED:
        return
    items[:] = [i for i in items if not (i.path.stem in FP32_ONLY and "float16" in i.name)]
    items[:] = few(items) if FEW else items
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


def few(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of each test the first case, the last, and some between, evenly."""
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    places = {name: {k * (len(of) - 1) // max(1, FEW - 1) for k in range(FEW)} for name, of in cases.items()}
    return [item for name, of in cases.items() for k, item in enumerate(of) if k in places[name]]


@pytest.fixture
def device() -> str:
    """Where the tensors of a test live."""
    return DEVICE


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that is right on this device."""
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def draw(device: str) -> Callable[..., Tensor]:
    """Normal numbers on the device: `draw(2, 3, dtype=..., scale=...)`."""

    def make(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape) * scale).to(device=device, dtype=dtype)

    return make


def error(got: Tensor, truth: Tensor) -> float:
    """`|got - truth| / |truth|`; NaN and infinity count as infinite."""
    got, truth = got.detach().double(), truth.detach().double()
    difference = (got - truth).norm() / truth.norm().clamp(min=1e-30)
    return float(difference) if torch.isfinite(got).all() else float("inf")


@pytest.fixture
def near() -> Callable[..., None]:
    """Assert a relative error below what the dtype allows: `near(got, truth, dtype)`."""

    def check(got: Tensor, truth: Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
        assert got.shape == truth.shape
        assert error(got, truth) <= factor * TOLERANCE[dtype]

    return check
