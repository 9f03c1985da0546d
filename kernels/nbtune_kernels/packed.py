"""16-bit weights (bf16) in 12 bits each, exactly: for memory that is far away.

    bits(w) = sign 1 | exponent 8 | fraction 7;     of a matrix, most exponents are among 15 neighbours
    byte    = sign 1 | fraction 7;     code = exponent - base, 4 bits;     code 15: w is written out elsewhere

A row of K weights is K bytes, then K / 2 bytes of two codes each (the first in the lower half). Behind all rows lie the
exceptions: positions (int32), then bits (int16). Weights drawn from one normal distribution have one in some thousands.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nbtune_kernels._runtime import cdiv, compute_capability, jit, op, tl, use_triton
from nbtune_kernels.tables import launch

_WINDOW = 15  # exponents that have a code
_EIGHT = 8  # a row is of so many weights, or a multiple: what lies behind it is aligned
_AT_ONCE = 2**22  # weights that are packed at a time
_SAMPLE = 2**20  # weights whose exponents say where the window is
_LARGEST = 2**31  # what 32-bit addresses reach
RARE = 256  # one exception in so many weights is what there is room for


class Packed(NamedTuple):
    """A matrix in 12 bits a weight.

    Args:
        data: uint8 `[rows * K * 3 / 2 + 6 * exceptions]`.
        base: the exponent of code 0.
        exceptions: how many weights have an exponent outside the window.
    """

    data: Tensor
    base: int
    exceptions: int


def most_bytes(rows: int, width: int) -> int:
    """Return the bytes that any matrix of this shape takes, if it can be packed."""
    return rows * width * 3 // 2 + 6 * (rows * width // RARE)


def _exponents(bits: Tensor) -> Tensor:
    return (bits >> 7) & 0xFF


def _outside(bits: Tensor, base: int) -> Tensor:
    code = _exponents(bits) - base
    return (code < 0) | (code >= _WINDOW)


def base_of(weights: list[Tensor]) -> tuple[int, int] | None:
    """Return the window's first exponent and the number of exceptions, for matrices `[o, K]` that are stacked; None:
    they cannot be packed, or to no avail. The window is that of a sample, the exceptions are counted."""
    width, count = weights[0].shape[1], sum(w.numel() for w in weights)
    if any(w.dtype != torch.bfloat16 for w in weights) or width % _EIGHT or count * 2 >= _LARGEST:
        return None
    all_bits = [w.detach().contiguous().view(torch.int16).view(-1) for w in weights]
    step = max(1, count // _SAMPLE)
    seen = sum(torch.bincount(_exponents(bits[::step]), minlength=256) for bits in all_bits)
    base = int(seen.cpu().unfold(0, _WINDOW, 1).sum(1).argmax())
    pieces = [piece for bits in all_bits for piece in bits.split(_AT_ONCE)]
    exceptions = int(torch.stack([_outside(piece, base).sum() for piece in pieces]).sum())
    return (base, exceptions) if exceptions <= count // RARE else None


def pack(weights: list[Tensor], base: int, exceptions: int, out: Tensor) -> Packed:
    """Pack matrices `[o, K]`, stacked, into `out`, wherever that is: a few rows at a time, so that little memory is
    needed beside.

    Args:
        base, exceptions: what `base_of` says of them.
        out: uint8, one-dimensional, of as many bytes as they take.
    """
    width, rows = weights[0].shape[1], sum(w.shape[0] for w in weights)
    made = Packed(out, base, exceptions)
    table, positions, values = _parts(made, rows, width)
    row = found = 0
    for w in weights:
        for piece in w.detach().split(max(1, _AT_ONCE // width)):
            bits = piece.contiguous().view(torch.int16)
            outside = _outside(bits, base)
            code = (_exponents(bits) - base).masked_fill_(outside, _WINDOW).to(torch.uint8)
            sign = ((bits >> 8) & 0x80).to(torch.uint8)
            lines = torch.cat(((bits & 0x7F).to(torch.uint8) | sign, code[:, 0::2] | (code[:, 1::2] << 4)), 1)
            table[row * width * 3 // 2 :][: lines.numel()].copy_(lines.view(-1))
            if exceptions:
                at = outside.view(-1).nonzero().squeeze(1)
                positions[found : found + at.numel()].copy_((at + row * width).int())
                values[found : found + at.numel()].copy_(bits.view(-1)[at])
                found += at.numel()
            row += piece.shape[0]
    return made


def _parts(packed: Packed, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows, the exceptions' positions and their bits."""
    data, _, exceptions = packed
    end = rows * width * 3 // 2
    middle = end + 4 * exceptions
    return data[:end], data[end:middle].view(torch.int32), data[middle : middle + 2 * exceptions].view(torch.int16)


def reference(packed: Packed, rows: int, width: int) -> Tensor:
    """Return the matrix `[rows, K]`, bf16, by stock arithmetic."""
    table, positions, values = _parts(packed, rows, width)
    table = table.view(rows, -1).to(torch.int32)
    low, pairs = table[:, :width], table[:, width:]
    code = torch.stack((pairs & 15, pairs >> 4), 2).reshape(rows, width)
    bits = ((low & 0x80) << 8) | ((code + packed.base) << 7) | (low & 0x7F)
    bits = torch.where(bits >= 2**15, bits - 2**16, bits).to(torch.int16)  # what is no exception fits
    bits.view(-1)[positions.long()] = values
    return bits.view(torch.bfloat16)


@jit
def _kernel(low, data, out, base, width, pairs, low_pitch, data_pitch, out_pitch, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = pair < pairs
    both = tl.load(low + row * low_pitch + pair, live, other=0).to(tl.int32)
    codes = tl.load(data + row * data_pitch + width + pair, live, other=0).to(tl.int32)
    first = ((both & 0x80) << 8) | ((base + (codes & 15)) << 7) | (both & 0x7F)
    second = (both & 0x8000) | ((base + (codes >> 4)) << 7) | ((both >> 8) & 0x7F)
    tl.store(out + row * out_pitch + pair, (first & 0xFFFF) | (second << 16), live)


@jit
def _exceptions_kernel(positions, values, out, count, width, pitch, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < count
    at = tl.load(positions + i, live, other=0)
    row = at // width
    tl.store(out + row * pitch + (at - row * width), tl.load(values + i, live, other=0), live)


@op(
    "unpack(Tensor data, int base, int exceptions, Tensor(a!) out) -> ()",
    lambda data, base, exceptions, out: None,
)
def _unpack(data, base, exceptions, out):
    rows, width = out.shape
    packed = Packed(data, base, exceptions)
    if not use_triton(data) or out.stride(0) % 2 or out.stride(0) * rows >= _LARGEST:
        out.copy_(reference(packed, rows, width))
        return
    table, pairs = launch("unpack", compute_capability(out.device)), width // 2
    block = table["pairs"]
    whole = out.as_strided((rows, out.stride(0)), (out.stride(0), 1))
    bytes_, positions, values = _parts(packed, rows, width)
    _kernel[(rows, cdiv(pairs, block))](
        bytes_.view(torch.int16), bytes_, whole.view(torch.int32), base, width, pairs,
        width * 3 // 4, width * 3 // 2, out.stride(0) // 2, BLOCK=block, num_warps=table["warps"],
        enable_fp_fusion=False,
    )  # fmt: skip
    if exceptions:
        _exceptions_kernel[(cdiv(exceptions, 1024),)](
            positions, values, whole.view(torch.int16), exceptions, width, out.stride(0), BLOCK=1024, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip


def unpack(packed: Packed, out: Tensor) -> None:
    """Write a matrix to `out [rows, K]`, bf16, whose rows may lie apart: every bit is that of the weights packed."""
    _unpack(packed.data, packed.base, packed.exceptions, out)
