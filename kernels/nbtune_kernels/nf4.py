"""4-bit weights in bitsandbytes' format (nf4 or fp4, blocks of one scale each, scales in 8 bits or not), decoded.

w[i] = code[nibble i] * scale[i // block];      scale[b] = inner[scales[b]] * outer[b // 256] + offset, or scales[b]

Two numbers share a byte, the first in its upper half. Sums and products are rounded one by one, in fp32, as
bitsandbytes rounds them: the numbers are the same, bit for bit. They are written where a product wants them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nbtune_kernels._runtime import cdiv, compute_capability, jit, op, tl, use_triton
from nbtune_kernels.tables import launch

_WORD = 8  # numbers in 32 bits
_LARGEST = 2**31  # elements that 32-bit addresses reach


class Codes(NamedTuple):
    """A matrix in 4 bits.

    Args:
        packed: uint8, two numbers each; code: fp32 `[16]`; block: numbers of one scale.
        scales: fp32, or uint8 with `inner` fp32 `[256]`, `outer` fp32 (one for `outer_block` scales), `offset` fp32 [].
    """

    packed: Tensor
    code: Tensor
    block: int
    scales: Tensor
    inner: Tensor | None = None
    outer: Tensor | None = None
    outer_block: int = 256
    offset: Tensor | None = None


def reference(codes: Codes, width: int) -> Tensor:
    """Compute `[rows, width]` fp32 by stock arithmetic."""
    pairs = codes.packed.reshape(-1).view(torch.uint8).int()
    scales = codes.scales
    if codes.inner is not None and codes.outer is not None and codes.offset is not None:
        outer = codes.outer.repeat_interleave(codes.outer_block)[: scales.numel()]
        scales = codes.inner[scales.int()] * outer + codes.offset
    numbers = codes.code[torch.stack((pairs >> 4, pairs & 15), 1).reshape(-1)]
    return (numbers * scales.repeat_interleave(codes.block)[: numbers.numel()]).view(-1, width)


@jit
def _kernel(
    packed, code, scales, inner, outer, offset, out, words, words_a_row, pitch,
    OF_SCALE: tl.constexpr, OF_OUTER: tl.constexpr, NESTED: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    live = word < words
    bits = tl.load(packed + word, live, other=0)
    if NESTED:
        which = tl.load(scales + word // OF_SCALE, live, other=0).to(tl.int32)
        scale = tl.load(inner + which) * tl.load(outer + word // OF_OUTER, live, other=0.0)
        scale = scale + tl.load(offset)
    else:
        scale = tl.load(scales + word // OF_SCALE, live, other=0.0)
    row = word // words_a_row
    at = row * pitch + (word - row * words_a_row) * 8
    i = tl.arange(0, 8)
    upper_first = (i // 2) * 8 + 4 - (i % 2) * 4
    nibble = (bits[:, None] >> upper_first[None, :]) & 15
    x = tl.load(code + nibble) * scale[:, None]
    tl.store(out + at[:, None] + i[None, :], x.to(out.dtype.element_ty), live[:, None])


def fits(codes: Codes, out: Tensor) -> bool:
    """Return whether `decode` has what it needs: Triton, whole words in each row, and memory that lies so."""
    rows, width = out.shape
    whole = width % _WORD == 0 and codes.block % _WORD == 0 and codes.packed.data_ptr() % 4 == 0
    lies = out.stride(1) == 1 and out.stride(0) * rows < _LARGEST
    return whole and lies and use_triton(codes.packed) and codes.packed.numel() * 2 == rows * width


@op(
    "nf4_decode(Tensor packed, Tensor code, Tensor scales, Tensor? inner, Tensor? outer, Tensor? offset, int block, "
    "int outer_block, Tensor(a!) out) -> ()",
    lambda packed, code, scales, inner, outer, offset, block, outer_block, out: None,
)
def _decode(packed, code, scales, inner, outer, offset, block, outer_block, out):
    rows, width = out.shape
    if not use_triton(packed):
        out.copy_(reference(Codes(packed, code, block, scales, inner, outer, outer_block, offset), width))
        return
    words, table = rows * width // _WORD, launch("nf4_decode", compute_capability(out.device))
    nested = inner is not None
    _kernel[(cdiv(words, table["words"]),)](
        packed.reshape(-1).view(torch.int32), code, scales, inner if nested else code, outer if nested else code,
        offset if nested else code, out, words, width // _WORD, out.stride(0),
        OF_SCALE=block // _WORD, OF_OUTER=block * outer_block // _WORD, NESTED=nested, WORDS=table["words"],
        enable_fp_fusion=False, num_warps=table["warps"],
    )  # fmt: skip


def decode(codes: Codes, out: Tensor) -> None:
    """Write all numbers of a matrix to `out [rows, width]`, in its dtype, where `fits` says that it can be done."""
    packed, code, block, scales, inner, outer, outer_block, offset = codes
    _decode(packed, code, scales, inner, outer, offset, block, outer_block, out)
