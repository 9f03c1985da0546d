"""Rows as the bytes of an encoding; K-quants: encoders for q2_K to q6_K, iq4_nl and iq4_xs in vectorised torch.

The *formats* are those that gguf's decoders state; how the numbers in them are found is ours, and the same for all: the
best of several roundings under the (weighted) squared error, each with its scale fitted in closed form.

A super-block is 256 values of a row, cut into sub-blocks of 16 or 32. Each sub-block has a small integer scale s (and,
in the affine types, a small integer minimum m), each super-block fp16 factors d (and e) of those:

    symmetric (q3_K, q6_K):    x ≈ d·s·q            q in −2^(b−1) … 2^(b−1) − 1
    affine (q2_K, q4_K, q5_K): x ≈ d·s·q − e·m      q in 0 … 2^b − 1, s and m not negative
    table (iq4_nl, iq4_xs):    x ≈ d·s·t[q]         t: 16 fixed values

Values stand in the first dimension, (values, sub-blocks), so that every sum over a sub-block runs along memory.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbtune.export.gguf import block_layout

# What takes the place of an encoding whose blocks of 256 do not divide a row.
_SMALLER = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_CHUNK = 1 << 17  # values that are encoded at once: they stay in the processor's cache
Round = Callable[[Tensor], Tensor]


def _safe(divisor: Tensor) -> Tensor:
    """Return 1/divisor, and 0 where it is 0."""
    return torch.where(divisor == 0, torch.zeros_like(divisor), 1 / divisor)


def _half(x: Tensor) -> Tensor:
    """Return `x` as fp16 keeps it."""
    return x.to(torch.float16).float()


class _Blocks:
    """Rows as sub-blocks.

    Args:
        rows: (n, 256) fp32.
        weights: of the squared errors, like `rows`, or None.
        size: values of a sub-block.
    """

    def __init__(self, rows: Tensor, weights: Tensor | None, size: int) -> None:
        self.subs = rows.shape[1] // size
        self.x = rows.reshape(-1, size).T.contiguous()
        self.w = None if weights is None else weights.reshape(-1, size).T.contiguous()
        self.wx = self.weigh(self.x)
        self.sx = self.wx.sum(0)
        self.n: Tensor | float = float(size) if self.w is None else self.w.sum(0)

    def weigh(self, values: Tensor) -> Tensor:
        return values if self.w is None else values * self.w

    def wide(self, per_block: Tensor) -> Tensor:
        """Repeat (n,) of super-blocks as (n·subs,) of sub-blocks."""
        return per_block.repeat_interleave(self.subs)

    def narrow(self, per_sub: Tensor) -> Tensor:
        """Reshape (n·subs,) to (n, subs)."""
        return per_sub.reshape(-1, self.subs)


# --- symmetric and table ----------------------------------------------------------------------------------------------


def _fit_scale(blocks: _Blocks, code: Round, extreme: float, tries: tuple[float, ...]) -> Tensor:
    """Return the scale of each sub-block under which `code` loses least: the value of largest size lands near
    `extreme`."""
    x = blocks.x
    largest = x.gather(0, x.abs().argmax(0, keepdim=True))[0]
    inverse = _safe(largest)
    best, scale = torch.zeros_like(largest), torch.zeros_like(largest)
    for step in tries:
        q = code(x * (inverse * (extreme + step)))
        along, square = (q * blocks.wx).sum(0), blocks.weigh(q).mul_(q).sum(0)
        fitted = along * _safe(square)
        gain = fitted * along
        better = gain > best
        best, scale = torch.where(better, gain, best), torch.where(better, fitted, scale)
    return scale


def _symmetric(blocks: _Blocks, scale: Tensor, code: Round, low: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (values, n·subs), integer scales (n, subs) in low..−low−1, and d (n,), from fitted scales."""
    narrow = blocks.narrow(scale)
    largest = narrow.gather(1, narrow.abs().argmax(1, keepdim=True))[:, 0]
    d = _half(largest / low)
    integer = q = scale
    for left in range(rounds, 0, -1):
        integer = (scale * blocks.wide(_safe(d))).round_().clamp_(low, -low - 1)
        q = code(blocks.x * _safe(integer * blocks.wide(d)))
        if left > 1:
            along = blocks.narrow(integer * (q * blocks.wx).sum(0)).sum(1)
            square = blocks.narrow(integer * integer * blocks.weigh(q).mul_(q).sum(0)).sum(1)
            d = _half(torch.where(square > 0, along * _safe(square), d))
    return q, blocks.narrow(integer), d


def _clamped(bits: int) -> Round:
    top = 2 ** (bits - 1)
    return lambda x: x.round_().clamp_(-top, top - 1)


def _q6_k(rows: Tensor, weights: Tensor | None) -> Tensor:
    blocks = _Blocks(rows, weights, 16)
    code = _clamped(6)
    scale = _fit_scale(blocks, code, -32.0, (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5))
    return block_layout.q6_k(*_symmetric(blocks, scale, code, -128, 2))


def _q3_k(rows: Tensor, weights: Tensor | None) -> Tensor:
    blocks = _Blocks(rows, weights, 16)
    code = _clamped(3)
    scale = _fit_scale(blocks, code, -4.0, (-1.0, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9))
    return block_layout.q3_k(*_symmetric(blocks, scale, code, -32, 3))


def _nearest_of_table(x: Tensor) -> Tensor:
    """Return the table's value nearest to each of `x`."""
    table = torch.tensor(block_layout.TABLE, dtype=torch.float32, device=x.device)
    middle = (table[1:] + table[:-1]) / 2
    return table[torch.bucketize(x, middle, out_int32=True)]


_TABLE_TRIES = tuple(float(step) for step in range(-20, 25, 5))


def _iq4_nl(rows: Tensor, weights: Tensor | None) -> Tensor:
    blocks = _Blocks(rows, weights, 32)
    d = _half(_fit_scale(blocks, _nearest_of_table, -127.0, _TABLE_TRIES))
    return block_layout.iq4_nl(_nearest_of_table(blocks.x * _safe(d)), d)


def _iq4_xs(rows: Tensor, weights: Tensor | None) -> Tensor:
    blocks = _Blocks(rows, weights, 32)
    scale = _fit_scale(blocks, _nearest_of_table, -127.0, _TABLE_TRIES)
    return block_layout.iq4_xs(*_symmetric(blocks, scale, _nearest_of_table, -32, 2))


# --- affine -----------------------------------------------------------------------------------------------------------


def _fit_affine(blocks: _Blocks, top: int, tries: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return the scale and the minimum (≥ 0, taken off) of each sub-block under which rounding to
    0..top loses least."""
    x, n, sx = blocks.x, blocks.n, blocks.sx
    low = x.amin(0).clamp_(max=0)
    spread = x.amax(0) - low
    best = torch.full_like(low, -torch.inf)
    scale, minimum = torch.zeros_like(low), -low
    for step in tries:
        inverse = _safe(spread) * (top + step)
        q = torch.addcmul(-(low * inverse), x, inverse).round_().clamp_(0, top)
        wq = blocks.weigh(q)
        sq, sqq, sqx = wq.sum(0), (wq * q).sum(0), (q * blocks.wx).sum(0)
        det = n * sqq - sq * sq
        s, o = (n * sqx - sq * sx) * _safe(det), (sx * sqq - sq * sqx) * _safe(det)
        bound = (o > 0) | (det <= 0)
        s, o = torch.where(bound, sqx * _safe(sqq), s), o.masked_fill(bound, 0)
        gain = 2 * (s * sqx + o * sx) - s * (s * sqq + 2 * o * sq) - o * o * n  # Σwx² less the error
        better = (gain > best) & (s > 0)
        best, scale = torch.where(better, gain, best), torch.where(better, s, scale)
        minimum = torch.where(better, -o, minimum)
    return scale, minimum


def _affine(
    blocks: _Blocks, top: int, most: int, tries: tuple[float, ...], rounds: int, near: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return codes (values, n·subs), integer scales and minima (n, subs) in 0..most, d and e (n,)."""
    scale, minimum = _fit_affine(blocks, top, tries)
    d, e = (_half(blocks.narrow(v).amax(1) / most) for v in (scale, minimum))
    s = m = q = scale
    for left in range(rounds, 0, -1):
        # The neighbours of a scale are tried at the end only: trying them in every round loses 0.1 % less, 25 % slower.
        tried = near if left == 1 else (0,)
        s, m, q = _integers(blocks, scale, minimum, blocks.wide(d), blocks.wide(e), top, most, tried)
        if left > 1:
            d, e = _refit(blocks, s, m, q, d, e)
    return q, blocks.narrow(s), blocks.narrow(m), d, e


def _integers(
    blocks: _Blocks, scale: Tensor, minimum: Tensor, d: Tensor, e: Tensor, top: int, most: int, near: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the integer scale and minimum of each sub-block for given d and e (n·subs,), and the codes under them."""
    whole = (scale * _safe(d)).round_()
    best: tuple[Tensor, Tensor, Tensor] | None = None
    least = torch.empty(0)
    for step in near:
        s = (whole + step).clamp_(0, most)
        size = s * d
        inverse = _safe(size)
        m = (minimum * _safe(e)).round_().clamp_(0, most)
        q = torch.addcmul(m * e * inverse, blocks.x, inverse).round_().clamp_(0, top)
        offset = (size * blocks.weigh(q).sum(0) - blocks.sx) / blocks.n  # the best minimum for these codes
        m = (offset * _safe(e)).round_().clamp_(0, most)
        q = torch.addcmul(m * e * inverse, blocks.x, inverse).round_().clamp_(0, top)
        if len(near) == 1:
            return s, m, q
        lost = torch.addcmul(-(m * e), q, size) - blocks.x
        error = blocks.weigh(lost).mul_(lost).sum(0)
        if best is None:
            best, least = (s, m, q), error
        else:
            better = error < least
            best = (
                torch.where(better, s, best[0]),
                torch.where(better, m, best[1]),
                torch.where(better, q, best[2]),
            )
            least = torch.minimum(error, least)
    if best is None:
        raise AssertionError("no candidates")
    return best


def _refit(blocks: _Blocks, s: Tensor, m: Tensor, q: Tensor, d: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Return d and e that lose least for given integers: a 2x2 least-squares problem a super-block."""
    wq = blocks.weigh(q)
    sq, sqq, sqx = wq.sum(0), (wq * q).sum(0), (q * blocks.wx).sum(0)
    narrow = blocks.narrow
    aa, bb, ab = narrow(s * s * sqq).sum(1), narrow(m * m * blocks.n).sum(1), -narrow(s * m * sq).sum(1)
    ax, bx = narrow(s * sqx).sum(1), -narrow(m * blocks.sx).sum(1)
    det = aa * bb - ab * ab
    good = det > 1e-6 * aa * bb
    new_d = torch.where(good, (bb * ax - ab * bx) * _safe(det), (ax - ab * e) * _safe(aa))
    new_e = torch.where(good, (aa * bx - ab * ax) * _safe(det), e)
    good = (new_d > 0) & (new_e >= 0)
    return _half(torch.where(good, new_d, d)), _half(torch.where(good, new_e, e))


def _q4_k(rows: Tensor, weights: Tensor | None) -> Tensor:
    return block_layout.q4_k(*_affine(_Blocks(rows, weights, 32), 15, 63, (-0.8, -0.3, 0.2, 0.7), 2, (0, -1, 1)))


def _q5_k(rows: Tensor, weights: Tensor | None) -> Tensor:
    return block_layout.q5_k(*_affine(_Blocks(rows, weights, 32), 31, 63, (-0.6, -0.1, 0.4, 0.9), 2, (0, -1, 1)))


def _q2_k(rows: Tensor, weights: Tensor | None) -> Tensor:
    # With two bits a model keeps more of itself if large weights are kept better: on nbtune/tiny the divergence of
    # q2_k fell from 0.0049 to 0.0043 nats. With three bits and more it made no difference.
    if weights is None:
        weights = rows.square()
        weights = weights + weights.mean(1, keepdim=True)
    tries = (-0.6, -0.3, 0.0, 0.3, 0.6, 0.9)
    return block_layout.q2_k(*_affine(_Blocks(rows, weights, 16), 3, 15, tries, 3, (0, -1, 1)))


ENCODERS: dict[str, tuple[int, Callable[[Tensor, Tensor | None], Tensor]]] = {
    "IQ4_NL": (32, _iq4_nl),
    "IQ4_XS": (256, _iq4_xs),
    "Q2_K": (256, _q2_k),
    "Q3_K": (256, _q3_k),
    "Q4_K": (256, _q4_k),
    "Q5_K": (256, _q5_k),
    "Q6_K": (256, _q6_k),
}
"""Encoding → (values of a block, function of (blocks (n, values) fp32, weights or None) → (n, bytes) uint8)."""


# --- any encoding ---------------------------------------------------------------------------------------------------


def fitting(encoding: str, columns: int) -> str:
    """Return `encoding`, or the nearest whose blocks divide a row of `columns`."""
    if columns % _block(encoding)[0]:
        encoding = _SMALLER.get(encoding, encoding)
    return encoding if columns % _block(encoding)[0] == 0 else "F16"


def _block(encoding: str) -> tuple[int, int]:
    """Return (values, bytes) of a block."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[encoding]]


def encoded_bytes(encoding: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor of `shape` takes in `encoding`."""
    block, size = _block(encoding)
    count = 1
    for length in shape:
        count *= length
    return count // block * size


def encode(
    rows: Tensor, encoding: str, weights: Tensor | None = None, pool: ThreadPoolExecutor | None = None
) -> np.ndarray[Any, Any]:
    """Return `rows` as the bytes of `encoding`.

    Args:
        rows: fp32 [..., columns] on any device, the last dimension is a row.
        weights: (columns,) of the squared errors (an importance matrix), for K-quants and iq4, or None.
        pool: threads to share the work, or None.
    """
    if encoding == "F32":
        return rows.contiguous().flatten().view(torch.uint8).cpu().numpy()
    if encoding in ("F16", "BF16"):
        kind = torch.float16 if encoding == "F16" else torch.bfloat16
        return rows.to(kind).contiguous().flatten().view(torch.uint8).cpu().numpy()
    parts = _parts(rows.reshape(-1, rows.shape[-1]).contiguous(), whole=rows.is_cuda)
    function = _encoder(encoding, weights)
    if pool is None:
        done = [function(part) for part in parts]
    else:
        done = list(pool.map(function, parts))
    return done[0] if len(done) == 1 else np.concatenate(done)


def _parts(rows: Tensor, whole: bool) -> list[Tensor]:
    limit = _CHUNK * 64 if whole else _CHUNK
    return list(rows.split(max(1, limit // rows.shape[1])))


def _encoder(encoding: str, weights: Tensor | None) -> Callable[[Tensor], np.ndarray[Any, Any]]:
    if encoding in ENCODERS:
        size, own = ENCODERS[encoding]

        def ours(part: Tensor) -> np.ndarray[Any, Any]:
            weigh = None if weights is None else weights.to(part).expand_as(part).reshape(-1, size)
            return own(part.reshape(-1, size), weigh).cpu().numpy().reshape(-1)

        return ours
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[encoding]
    return lambda part: quants.quantize(part.cpu().numpy(), kind).reshape(-1)
