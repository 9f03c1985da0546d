"""Products of fp32 matrices on a CPU: by oneDNN where the library that torch asks otherwise is slower.

    y = x w'        x [T, K], w [O, K], fp32

MKL leaves AMD's 512-bit units idle: 105 GFLOP/s a core of an EPYC 9005, where oneDNN has 230 with the same rounding
(both are off by 4e-7 of a result's size). Everywhere else this is `torch.mm`. torch's switch for all products
(`torch.backends.mkldnn.matmul.fp32_precision`) would do the same, but for the whole process, and to attention's small
products, which it makes five times slower; on CPUs with AMX it would round to bf16, what the call below never does.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

_FEWEST = 16  # rows; a token that is generated is as fast either way
_BESIDE = 2**23  # bytes of a result that are written beside its place
_NARROWEST = 512  # sides of w below it are left to torch: little time is spent there


def product(x: Tensor, w: Tensor) -> Tensor:
    """Return x w' `[T, O]`, of x `[T, K]` and w `[O, K]` with any strides."""
    if x.is_cuda or not _by_onednn(x, w):
        return torch.mm(x, w.t())
    x = x if x.stride(1) == 1 else x.contiguous()
    # other strides than these are multiplied one number at a time
    w = w if w.is_contiguous() or w.t().is_contiguous() else w.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")  # type: ignore[no-any-return]


def product_into(out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None = None) -> None:
    """Write x w' + bias into out `[T, O]`, whose rows may lie apart."""
    if not x.is_cuda and _by_onednn(x, w):
        width = max(_NARROWEST, _BESIDE // (4 * x.shape[0]))
        for a in range(0, w.shape[0], width):  # oneDNN writes beside `out`: little at a time
            part, y = out[:, a : a + width], product(x, w[a : a + width])
            part.copy_(y) if bias is None else torch.add(y, bias[a : a + width], out=part)
    elif bias is None:
        torch.mm(x, w.t(), out=out)
    else:
        torch.addmm(bias, x, w.t(), out=out)


def product_onto(residual: Tensor, x: Tensor, w: Tensor, scale: float = 1.0) -> Tensor:
    """Return residual + scale x w' `[T, O]`."""
    if not x.is_cuda and _by_onednn(x, w):
        return torch.add(residual, product(x, w), alpha=scale)
    return torch.addmm(residual, x, w.t(), alpha=scale)


def _by_onednn(x: Tensor, w: Tensor) -> bool:
    return (
        x.dtype == w.dtype == torch.float32
        and x.device.type == "cpu"
        and x.shape[0] >= _FEWEST
        and min(w.shape) >= _NARROWEST
        and type(x) is Tensor  # not a traced or a parted one
        and isinstance(w, Tensor | torch.nn.Parameter)
        and onednn_is_faster()
    )


@functools.cache
def onednn_is_faster() -> bool:
    """Return whether torch would ask MKL, this is an AMD CPU with AVX-512, and torch has the call."""
    here = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return here and wide and "AuthenticAMD" in _maker() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _maker() -> str:
    """Return a text that holds the CPU's maker: Linux says it in a file, Windows in the processor's name."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            return next((line for line in file if line.startswith("vendor_id")), "")
    except OSError:
        return platform.processor()
