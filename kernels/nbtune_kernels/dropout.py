"""Dropout whose mask is recomputed from a seed: nothing is saved but the seed.

    keep_i = philox4x32-10(seed, i).x >= p 2^32;    y_i = keep_i ? x_i / (1 - p) : 0

The backward pass is the same op on dy. i counts elements of the contiguous tensor, from `offset`. Kernel and reference
give the same mask. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox; Random123).
"""

import torch
from torch import Tensor

from ._runtime import op

_MASK = 0xFFFFFFFF


def _mulhilo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b for 32-bit values held in int64."""
    al, ah, bl, bh = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    low = al * bl
    mid = ah * bl + (low >> 16)
    mid2 = al * bh + (mid & 0xFFFF)
    return (ah * bh + (mid >> 16) + (mid2 >> 16)) & _MASK, ((mid2 << 16) | (low & 0xFFFF)) & _MASK


def philox(seed: Tensor, index: Tensor) -> Tensor:
    """First 32-bit word of Philox4x32-10 with key `seed` (int64 scalar) and counter `index` (int64), as int64."""
    seed = seed.to(torch.int64).reshape(())
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1 = index & _MASK, (index >> 32) & _MASK
    c2 = c3 = torch.zeros_like(index)
    for _ in range(10):
        hi_a, lo_a = _mulhilo(0xD2511F53, c0)
        hi_b, lo_b = _mulhilo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi_b ^ c1 ^ k0, lo_b, hi_a ^ c3 ^ k1, lo_a
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0


def reference(x: Tensor, p: float, seed: Tensor, offset: int = 0) -> Tensor:
    """`torch.nn.functional.dropout` with the mask of `dropout_mask`; differentiable."""
    return torch.where(
        dropout_mask(x.shape, p, seed, offset), x * (1 / (1 - p)), torch.zeros((), dtype=x.dtype, device=x.device)
    )


def dropout_mask(shape: tuple[int, ...] | torch.Size, p: float, seed: Tensor, offset: int = 0) -> Tensor:
    """The mask itself (bool, True = kept), on seed's device: give it to another implementation to compare."""
    index = torch.arange(offset, offset + torch.Size(shape).numel(), device=seed.device)
    return (philox(seed, index) >= int(p * 2**32)).view(shape)


@op(
    "dropout(Tensor x, float p, Tensor seed, int offset) -> Tensor",
    lambda x, p, seed, offset: x.new_empty(x.shape),
)
def _dropout(x, p, seed, offset):
    return reference(x, p, seed, offset).contiguous()


def dropout(x: Tensor, p: float, seed: Tensor, *, offset: int = 0) -> Tensor:
    """Drop elements of x with probability p, by a mask that seed and position alone decide.

    Args:
        x: any shape; also dy, for the backward pass.
        p: `0 <= p < 1`.
        seed: int64, one element, on x's device (so a captured CUDA graph draws a new mask when it is changed).
        offset: first counter; modules that share a seed take disjoint ranges.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout probability must be in [0, 1), not {p}")
    return _dropout(x, p, seed, offset)
