"""What every op file shares: is Triton there, which path does a tensor take, how an op is registered.

Knows nothing of any single op. An op is a *leaf*: it has a schema, one implementation for all devices (which picks
Triton or plain torch by the tensor) and a fake version; it has no autograd formula, so a block's own
`autograd.Function` decides what is saved. `Library.impl` costs about 4 us a call, `custom_op` about 17 us (CPU, torch
2.13), which is why the former is used.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
COMPILE_ONLY = os.environ.get("NBTUNE_COMPILE_AHEAD", "0") == "1"  # see `nbtune_kernels.ahead`

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows: every op has its plain-torch path

    class _Missing:
        """Stands in for `triton.language` in annotations such as `tl.constexpr`."""

        def __getattr__(self, name: str) -> Any:
            return None

        @staticmethod
        def constexpr(value: Any) -> Any:
            """Return a kernel's constant as it is: the kernel is never called."""
            return value

    triton = None
    tl = _Missing()

HAS_TRITON = triton is not None
# a * b + c in one rounding, said at each launch: Triton 3.10 changes the default, and 3.9 warns of it.
FUSED = {"enable_fp_fusion": True}

_LIB = torch.library.Library("nbtune", "FRAGMENT")


def jit(fn: Callable) -> Any:
    """Return `triton.jit` of a function where Triton is installed; elsewhere the function itself (never called
    then)."""
    if triton is None:
        return fn
    if COMPILE_ONLY and not INTERPRETED:
        from nbtune_kernels.ahead import CompileOnly

        return CompileOnly(fn)
    return triton.jit(fn)


@jit
def row_start(row, inner, outer_stride, inner_stride):
    """Return the offset of a row (int64) under a `Rows` layout."""
    return (row // inner) * outer_stride + (row % inner) * inner_stride


def use_triton(tensor: Tensor) -> bool:
    """Return whether kernels run for this tensor: on CUDA (and ROCm), or under Triton's interpreter."""
    return HAS_TRITON and (tensor.is_cuda or INTERPRETED)


def op(schema: str, fake: Callable) -> Callable[[Callable], Any]:
    """Register a leaf op in the namespace `nbtune` and return its overload.

    Args:
        schema: the op's name and schema, with mutations declared: `"f(Tensor x, Tensor(a!) out) -> ()"`.
        fake: shapes and dtypes of the results, for `torch.compile`, FSDP2 and meta tensors.
    """
    name = schema.split("(", 1)[0]

    def register(fn: Callable) -> Any:
        _LIB.define(schema)
        _LIB.impl(name, fn, "CompositeExplicitAutograd")
        torch.library.register_fake(f"nbtune::{name}", fake, lib=_LIB)
        return getattr(torch.ops.nbtune, name).default

    return register


def rows(x: Tensor) -> Tensor:
    """View `[..., H]` as `[rows, H]` (a copy only where no view exists)."""
    return x.reshape(-1, x.shape[-1])


def flat_rows(x: Tensor, *, written: bool = False) -> Tensor:
    """Return `[..., H]` as `[rows, H]` with one row stride and a unit last one, copied if there is no such view.

    Raises:
        ValueError: there is none, and it is to be `written`.
    """
    if written:
        x = x if x.dim() == 2 else x.view(-1, x.shape[-1])
        if x.stride(1) != 1 and x.shape[1] > 1:
            raise ValueError(f"cannot write rows with a last stride of {x.stride(1)}")
        return x
    x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


class Rows(NamedTuple):
    """Where the rows of a tensor lie: row i at `(i // inner) * outer_stride + (i % inner) * inner_stride` elements."""

    tensor: Tensor
    inner: int
    outer_stride: int
    inner_stride: int


def row_layout(x: Tensor) -> Rows:
    """Return the rows of `x [..., H]` as two nested strides, which covers slices of packed buffers and heads inside
    them.

    A tensor that has no such layout (heads that lie before their tokens, as some attention kernels leave gradients) is
    copied: what is written goes through `landed`.
    """
    width = x.shape[-1]
    if x.is_contiguous():
        return Rows(x, 1, width, 0)
    groups: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * stride:
            groups[-1] = (groups[-1][0] * size, stride)
        else:
            groups.append((size, stride))
    if x.stride(-1) != 1 or len(groups) > 2:
        return Rows(x.contiguous(), 1, width, 0)
    if not groups:
        return Rows(x, 1, width, 0)
    if len(groups) == 1:
        return Rows(x, 1, groups[0][1], 0)
    return Rows(x, groups[1][0], groups[0][1], groups[1][1])


def landed(written: Rows, out: Tensor) -> None:
    """Copy the rows that were written for `out`, where they are not its own."""
    if written.tensor is not out:
        out.copy_(written.tensor)


def fresh(x: Tensor) -> Tensor:
    """Make an uninitialised contiguous tensor of x's shape, dtype and device."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def row_stats(x: Tensor) -> Tensor:
    """Make an uninitialised fp32 number for each row of `x [..., H]`: `[rows]`."""
    return torch.empty(x.shape[:-1].numel(), dtype=torch.float32, device=x.device)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is >= n."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


@functools.cache
def compute_capability(device: torch.device) -> int:
    """Return `90` for Hopper, `75` for a T4; 0 where there is no NVIDIA GPU (the interpreter, ROCm): default
    parameters."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tensor_cores(tensor: Tensor) -> bool:
    """Return whether `tl.dot` runs on tensor cores: before sm_80 Triton makes scalar products of it (interpreter:
    always)."""
    return (INTERPRETED and not tensor.is_cuda) or compute_capability(tensor.device) >= 80


@functools.cache
def processors(device: torch.device) -> int:
    """Count the streaming multiprocessors of the device; 4 where there is none (the interpreter)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
