"""Dropout whose mask is recomputed from a seed: nothing is saved but the seed.

    keep_i = half of philox4x32-7(key = seed, counter = (c, 0, stream, 0))[w] >= p 2^16
    y_i = keep_i ? x_i / (1 - p) : 0

One counter serves eight elements, two by each of its words, since the generator and not memory is what limits: element
i has c = i // 8, w = (i % 8) // 2, and the low (i even) or high half of the word.
p is rounded to a multiple of 2^-16. The backward pass is the same op on dy. Kernel and reference give the same mask.
Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox; Random123): seven rounds pass every test.
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, jit, op, tl, use_triton
from nbtune_kernels.tables import launch

_MASK = 0xFFFFFFFF


def _mulhilo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and low 32 bits of a * b for 32-bit values held in int64."""
    al, ah, bl, bh = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    low = al * bl
    mid = ah * bl + (low >> 16)
    mid2 = al * bh + (mid & 0xFFFF)
    return (ah * bh + (mid >> 16) + (mid2 >> 16)) & _MASK, ((mid2 << 16) | (low & 0xFFFF)) & _MASK


def philox(seed: Tensor, counter: Tensor, stream: int) -> Tensor:
    """Return the four 32-bit words `[4, n]` (as int64) of Philox4x32-7 for int64 counters `[n]`."""
    seed = seed.to(torch.int64).reshape(())
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1 = counter & _MASK, (counter >> 32) & _MASK
    c2, c3 = torch.full_like(counter, stream), torch.zeros_like(counter)
    for _ in range(7):
        hi_a, lo_a = _mulhilo(0xD2511F53, c0)
        hi_b, lo_b = _mulhilo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi_b ^ c1 ^ k0, lo_b, hi_a ^ c3 ^ k1, lo_a
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack((c0, c1, c2, c3))


def dropout_mask(shape: tuple[int, ...] | torch.Size, p: float, seed: Tensor, stream: int = 0) -> Tensor:
    """Return the mask itself, bool `[*shape]`, True = kept, on seed's device: for another implementation to compare."""
    n = torch.Size(shape).numel()
    words = philox(seed, torch.arange(cdiv(n, 8), device=seed.device), stream)
    halves = torch.stack((words & 0xFFFF, words >> 16), 1).view(8, -1).t()
    return (halves.reshape(-1)[:n] >= _threshold(p)).view(shape)


def _threshold(p: float) -> int:
    return round(p * 2**16)


def reference(x: Tensor, p: float, seed: Tensor, stream: int = 0) -> Tensor:
    """Do as `torch.nn.functional.dropout` on `x [...]`, with the mask of `dropout_mask`; differentiable."""
    return torch.where(dropout_mask(x.shape, p, seed, stream), x * (1 / (1 - p)), torch.zeros((), dtype=x.dtype))


@jit
def _kernel(x_ptr, seed_ptr, y_ptr, n, threshold, scale, stream, ADD: tl.constexpr, BLOCK: tl.constexpr):
    seed = tl.load(seed_ptr)
    # a column from the start: a thread then makes the words of the very elements that it loads
    c = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    low = (c & 0xFFFFFFFF).to(tl.uint32)
    high = (c >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero + stream, zero, n_rounds=7)
    part = tl.arange(0, 8)[None, :]
    at = c * 8 + part
    x = tl.load(x_ptr + at, at < n, other=0.0).to(tl.float32)
    word = tl.where(part < 2, w0, tl.where(part < 4, w1, tl.where(part < 6, w2, w3)))
    half = tl.where(part % 2 == 0, word & 0xFFFF, word >> 16).to(tl.int32)
    y = tl.where(half >= threshold, x * scale, 0.0)
    if ADD:
        y += tl.load(y_ptr + at, at < n, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), at < n)


@op("dropout(Tensor x, float p, Tensor seed, int stream, bool add, Tensor(a!) y) -> ()", lambda *_: None)
def _dropout(x, p, seed, stream, add, y):
    if not use_triton(x):
        kept = reference(x, p, seed, stream)
        y.copy_((y.float() + kept.float()).to(y.dtype) if add else kept)
        return
    table, x = launch("dropout", compute_capability(x.device)), x.contiguous()
    _kernel[(cdiv(x.numel(), 8 * table["block"]),)](
        x, seed, y, x.numel(), _threshold(p), 1 / (1 - p), stream, ADD=add, BLOCK=table["block"],
        **FUSED, num_warps=table["warps"],
    )  # fmt: skip


def dropout(x: Tensor, p: float, seed: Tensor, *, stream: int = 0, onto: Tensor | None = None) -> Tensor:
    """Drop elements of x with probability p, by a mask that seed, stream and position alone decide.

    Args:
        x: any shape; also dy, for the backward pass.
        p: `0 <= p < 1`.
        seed: int64, one element, on x's device (so a captured CUDA graph draws a new mask when it is changed).
        stream: `0 <= stream < 2^31`; modules that share a seed take different ones.
        onto: contiguous, of x's shape and dtype: the result is added to it, in fp32 and with one rounding.

    Raises:
        ValueError: p is no such probability, or x cannot be added onto `onto`.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout probability must be in [0, 1), not {p}")
    if onto is not None and (onto.shape != x.shape or not onto.is_contiguous()):
        raise ValueError(f"cannot add {tuple(x.shape)} onto {tuple(onto.shape)} with strides {onto.stride()}")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if onto is None else onto
    _dropout(x, p, seed, stream, onto is not None, y)
    return y
