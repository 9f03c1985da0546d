"""How the numbers of quantised blocks lie in bytes, as gguf's decoders read them.

Every function takes codes as (values of a sub-block, n·subs) and gives (n, bytes of a block), uint8.
"""

from __future__ import annotations

import torch
from torch import Tensor

TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values of iq4_nl and iq4_xs."""


def _codes(q: Tensor, plus: int = 0, length: int = 256) -> Tensor:
    """Return (values, n·subs) as (n, length) uint8, in the order of the row."""
    return (q + plus).to(torch.uint8).T.reshape(-1, length)


def _fp16(d: Tensor) -> Tensor:
    """Return (n,) as bytes (n, 2)."""
    return d.to(torch.float16).reshape(-1, 1).view(torch.uint8)


def _small(s: Tensor, plus: int = 0) -> Tensor:
    return (s + plus).to(torch.int16).to(torch.uint8)


def _scales_and_minima(s: Tensor, m: Tensor) -> Tensor:
    """Pack eight scales and eight minima of 6 bits each in 12 bytes."""
    s, m = _small(s), _small(m)
    return torch.cat(
        [
            s[:, :4] | (s[:, 4:] >> 4 << 6),
            m[:, :4] | (m[:, 4:] >> 4 << 6),
            (s[:, 4:] & 15) | (m[:, 4:] << 4),
        ],
        dim=1,
    )


def _fours(q: Tensor) -> Tensor:
    """Return low 4 bits: pairs of sub-blocks of 32 share 32 bytes: (n, 256) → (n, 128)."""
    q = (q & 15).reshape(-1, 4, 2, 32)
    return (q[:, :, 0] | (q[:, :, 1] << 4)).reshape(-1, 128)


def _twos(q: Tensor) -> Tensor:
    """Return low 2 bits: four runs of 32 of each half share 32 bytes: (n, 256) → (n, 64)."""
    q = (q & 3).reshape(-1, 2, 4, 32)
    return (q[:, :, 0] | (q[:, :, 1] << 2) | (q[:, :, 2] << 4) | (q[:, :, 3] << 6)).reshape(-1, 64)


def _ones(bit: Tensor) -> Tensor:
    """Return one bit: byte j has that of value j of each run of 32: (n, 256) → (n, 32)."""
    bit = bit.reshape(-1, 8, 32)
    out = bit[:, 0].clone()
    for run in range(1, 8):
        out |= bit[:, run] << run
    return out


def q2_k(q: Tensor, s: Tensor, m: Tensor, d: Tensor, e: Tensor) -> Tensor:
    """Pack into 84 bytes: scale and minimum of 4 bits for each 16 values, codes of 2 bits, d, e."""
    return torch.cat([_small(s) | (_small(m) << 4), _twos(_codes(q)), _fp16(d), _fp16(e)], dim=1)


def q3_k(q: Tensor, s: Tensor, d: Tensor) -> Tensor:
    """Pack into 110 bytes: high bits, low 2 bits, 16 scales of 6 bits, d."""
    codes, s = _codes(q, 4), _small(s, 32)
    low = (s[:, :8] & 15) | (s[:, 8:] << 4)
    high = s >> 4
    high = high[:, :4] | (high[:, 4:8] << 2) | (high[:, 8:12] << 4) | (high[:, 12:] << 6)
    return torch.cat([_ones(codes >> 2), _twos(codes), low, high, _fp16(d)], dim=1)


def q4_k(q: Tensor, s: Tensor, m: Tensor, d: Tensor, e: Tensor) -> Tensor:
    """Pack into 144 bytes: d, e, scales and minima, codes of 4 bits."""
    return torch.cat([_fp16(d), _fp16(e), _scales_and_minima(s, m), _fours(_codes(q))], dim=1)


def q5_k(q: Tensor, s: Tensor, m: Tensor, d: Tensor, e: Tensor) -> Tensor:
    """Pack into 176 bytes: d, e, scales and minima, fifth bits, low 4 bits."""
    codes = _codes(q)
    return torch.cat([_fp16(d), _fp16(e), _scales_and_minima(s, m), _ones(codes >> 4), _fours(codes)], dim=1)


def q6_k(q: Tensor, s: Tensor, d: Tensor) -> Tensor:
    """Pack into 210 bytes: low 4 bits, high 2 bits, 16 scales of 8 bits, d."""
    codes = _codes(q, 32)
    low = (codes & 15).reshape(-1, 2, 2, 64)
    low = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
    return torch.cat([low, _twos(codes >> 4), _small(s), _fp16(d)], dim=1)


def _table_codes(values: Tensor, length: int) -> Tensor:
    table = torch.tensor(TABLE, dtype=torch.float32, device=values.device)
    codes = torch.bucketize(values, table, out_int32=True).to(torch.uint8).T.reshape(-1, length)
    halves = codes.reshape(codes.shape[0], -1, 2, 16)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(codes.shape[0], -1)


def iq4_nl(values: Tensor, d: Tensor) -> Tensor:
    """Pack into 18 bytes for 32 values: d, codes of 4 bits."""
    return torch.cat([_fp16(d), _table_codes(values, 32)], dim=1)


def iq4_xs(values: Tensor, s: Tensor, d: Tensor) -> Tensor:
    """Pack into 136 bytes: d, high 2 bits of the scales, low 4 bits, codes of 4 bits."""
    s = _small(s, 32)
    high = torch.zeros(s.shape[0], dtype=torch.int32, device=s.device)
    for i in range(8):
        high |= (s[:, i].to(torch.int32) >> 4) << (2 * i)
    high = torch.stack([high & 255, high >> 8], dim=1).to(torch.uint8)
    low = (s[:, ::2] & 15) | (s[:, 1::2] << 4)
    return torch.cat([_fp16(d), high, low, _table_codes(values, 256)], dim=1)
