"""A row of logits shared by several programs: read once, kept in registers, overwritten with its gradient.

A program holds `block` logits of a row and finds their (top, sum, weighted sum) as in cross_entropy.py. The programs of
a row tell each other theirs by two 64-bit words each, wait until all words of the row are there, and write the
gradients of what they hold. A walk of one program over the row reads it twice, which is a third of the traffic: more
logits are in flight at once than an L2 cache keeps.

A program waits for programs of its own row only, which are neighbours in a launch's order: while as many programs as a
row has can run at once, the earliest unfinished row always gets its programs, and others follow. So it is used where
a row has no more programs than the card has processors. An interpreter runs programs one after another, where only
rows of one program can be.
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, jit, next_power_of_2, processors, tl
from nbtune_kernels.tables import launch


@jit
def bend(raw, inner, SOFTCAP: tl.constexpr):
    """Return u: the logit itself, or tanh(scale * logit / softcap)."""
    u = raw.to(tl.float32)
    if SOFTCAP:
        u = 2 * tl.sigmoid(u * inner) - 1
    return u


@jit
def slope(u, factor, lse2, high, uniform, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr):
    """Return the gradient of a row but for its label: `high * softmax - uniform`, both times the row's coefficient."""
    d = high * tl.exp2(u * factor - lse2)
    if SMOOTH:
        d -= uniform
    if SOFTCAP:
        d *= 1 - u * u
    return d


@jit
def _halves(pair, KIND: tl.constexpr, inner, SOFTCAP: tl.constexpr):
    """Return the two 16-bit logits of a 32-bit word, bent. Words are kept: unpacked logits take twice the registers."""
    if KIND.is_bf16():
        first = (pair << 16).to(tl.float32, bitcast=True)
        second = (pair & -65536).to(tl.float32, bitcast=True)
    else:
        first = pair.to(tl.int16).to(KIND, bitcast=True)
        second = (pair >> 16).to(tl.int16).to(KIND, bitcast=True)
    return bend(first, inner, SOFTCAP), bend(second, inner, SOFTCAP)


@jit
def _weighted(pair, KIND: tl.constexpr, inner, factor, top, SOFTCAP: tl.constexpr):
    """Return the weighted sum of a part whose logits may be -inf: they add nothing."""
    a, b = _halves(pair, KIND, inner, SOFTCAP)
    ga = tl.maximum(a * factor - top, -1.0e30)
    gb = tl.maximum(b * factor - top, -1.0e30)
    return tl.sum(tl.sum(tl.exp2(ga) * ga + tl.exp2(gb) * gb, 1), 0)


@jit
def _merge(top1, total1, weighted1, top2, total2, weighted2):
    """Join two parts of a row; tops are exponents of 2, total is the sum of `e = 2^g`, weighted that of `e g`."""
    top = tl.maximum(top1, top2)
    down1 = top1 - top
    down2 = top2 - top
    fade1 = tl.exp2(down1)
    fade2 = tl.exp2(down2)
    weighted = (weighted1 + total1 * down1) * fade1 + (weighted2 + total2 * down2) * fade2
    return top, total1 * fade1 + total2 * fade2, weighted


@jit
def _word(high, low):
    """Put two fp32 numbers into one word, of which the last bit says that it is there."""
    word = high.to(tl.int32, bitcast=True).to(tl.int64) << 32
    return word | (low.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF) | 1


@jit
def _high(word):
    return (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@jit
def _low(word):
    return word.to(tl.int32).to(tl.float32, bitcast=True)


@jit
def _exchange(words, part, parts, top, total, weighted, plain, SLOTS: tl.constexpr):
    """Return the row's top, total, weighted and plain sums, from those of its parts, in the order of the parts.

    A word is written and read at once, so nothing else has to be ordered.
    """
    tl.atomic_xchg(words + 2 * part, _word(top, total), sem="relaxed")
    tl.atomic_xchg(words + 2 * part + 1, _word(weighted, plain), sem="relaxed")
    slot = tl.arange(0, SLOTS)
    there = slot < parts
    first = tl.load(words + 2 * slot, there, other=1, volatile=True)
    second = tl.load(words + 2 * slot + 1, there, other=1, volatile=True)
    while tl.min(first & second & 1, 0) == 0:
        first = tl.load(words + 2 * slot, there, other=1, volatile=True)
        second = tl.load(words + 2 * slot + 1, there, other=1, volatile=True)
    tops = tl.where(there, _high(first), -1.0e29)
    totals = tl.where(there, _low(first), 0.0)
    weights = tl.where(there, _high(second), 0.0)
    top, total, weighted = tl.reduce((tops, totals, weights), 0, _merge)
    return top, total, weighted, tl.sum(tl.where(there, _low(second), 0.0), 0)


@jit
def _shared_kernel(
    logits_ptr, pairs_ptr, labels_ptr, coef_ptr, loss_ptr, lse_ptr, entropy_ptr, correct_ptr, words_ptr,
    stride, pitch, vocabulary, half, parts, scale, softcap, z_loss, smoothing, ignore_index,
    SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr, LANES: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = LANES * 8
    KIND: tl.constexpr = logits_ptr.dtype.element_ty
    LOWEST: tl.constexpr = -134809610 if KIND.is_bf16() else -67044352  # two of -1e34, or of -inf
    row = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    start = part * BLOCK
    row_ptr = logits_ptr + row * stride
    lane = tl.arange(0, LANES)[:, None]
    pair = part * (BLOCK // 2) + lane * 4 + tl.arange(0, 4)[None, :]
    inside = pair < half
    # all at once; an ignored row is read for nothing
    x = tl.load(pairs_ptr + row * pitch + pair, inside, other=LOWEST)
    y = tl.load(labels_ptr + row)
    coef = tl.load(coef_ptr + row)
    trained = y != ignore_index
    # An ignored row's logits become 0, whatever they are. To the compiler `x & keep` are other words than x, whose
    # halves it unpacks anew instead of keeping them, which would take all registers.
    keep = tl.where(trained, -1, 0)
    mine = (y >= start) & (y < start + BLOCK) & trained
    unit = softcap if SOFTCAP else scale
    inner = 2 * scale / softcap if SOFTCAP else 1.0
    factor = unit * 1.4426950408889634  # log2(e)
    # before the barriers below: a warp that runs ahead overwrites logits
    uy = bend(tl.load(row_ptr + y, mine, other=0.0), inner, SOFTCAP)

    a, b = _halves(x, KIND, inner, SOFTCAP)
    if SOFTCAP:
        a = tl.where(inside, a, -1.0e34)
        b = tl.where(inside, b, -1.0e34)
    # the maximum is taken of the product: a product in a difference would be fused into it, and what is equal would
    # differ by its rounding, which for parts of -inf is a number like 1e22
    tops = tl.maximum(tl.max(tl.maximum(a, b), 1) * factor, -1.0e29)
    ga = a * factor - tops[:, None]
    gb = b * factor - tops[:, None]
    ea = tl.exp2(ga)
    eb = tl.exp2(gb)
    top, total, weighted = tl.reduce((tops, tl.sum(ea + eb, 1), tl.sum(ea * ga + eb * gb, 1)), 0, _merge)
    if weighted != weighted:  # 0 * -inf: a banned token, or what is beyond the row in fp16
        weighted = _weighted(x & keep, KIND, inner, factor, top, SOFTCAP)
    plain = 0.0
    if SMOOTH:
        plain = tl.sum(tl.sum(tl.where(a > -1.0e29, a, 0.0) + tl.where(b > -1.0e29, b, 0.0), 1), 0)
    top, total, weighted, plain = _exchange(
        words_ptr + row * parts * 2, part, parts, top, total, weighted, plain, SLOTS
    )

    lse2 = tl.where(trained, top + tl.log2(total), 0.0)
    lse = lse2 * 0.6931471805599453  # ln(2)
    if mine | ((part == 0) & (y == ignore_index)):
        loss = lse - (1 - smoothing) * uy * unit + z_loss * lse * lse
        if SMOOTH:
            loss -= smoothing * unit * plain / vocabulary
        entropy = tl.log(total) - weighted / total * 0.6931471805599453
        tl.store(lse_ptr + row, lse)
        tl.store(loss_ptr + row, tl.where(trained, loss, 0.0))
        tl.store(entropy_ptr + row, tl.where(trained, entropy, 0.0))
        tl.store(correct_ptr + row, tl.where(trained & (uy * factor >= top), 1.0, 0.0))
    coef = tl.where(trained, coef, 0.0) * scale
    high = coef * (1 + 2 * z_loss * lse)
    uniform = coef * smoothing / vocabulary
    a, b = _halves(x & keep, KIND, inner, SOFTCAP)
    a = slope(a, factor, lse2, high, uniform, SOFTCAP, SMOOTH)
    b = slope(b, factor, lse2, high, uniform, SOFTCAP, SMOOTH)
    col = start + lane * 8 + tl.arange(0, 8)[None, :]
    tl.store(row_ptr + col, tl.reshape(tl.join(a, b), (LANES, 8)).to(KIND), col < vocabulary)
    if mine:
        d = slope(uy, factor, lse2, high, uniform, SOFTCAP, SMOOTH)
        label = coef * (1 - smoothing)
        if SOFTCAP:
            label *= 1 - uy * uy
        tl.debug_barrier()  # after the tile's own store of this element
        tl.store(row_ptr + y, (d - label).to(KIND))


def _block(logits: Tensor) -> int:
    table = launch("cross_entropy_shared", compute_capability(logits.device))
    return max(512, min(table["block"], next_power_of_2(logits.shape[1])))


def can_share(logits: Tensor) -> bool:
    """Return whether rows can be shared: 16-bit logits in pairs, and a card that runs all programs of a row at once."""
    paired = logits.shape[1] % 2 == 0 and logits.stride(0) % 2 == 0 and logits.storage_offset() % 2 == 0
    table = launch("cross_entropy_shared", compute_capability(logits.device))
    if logits.element_size() != 2 or not paired or not table["block"]:
        return False
    parts = cdiv(logits.shape[1], _block(logits))
    return parts <= processors(logits.device) if compute_capability(logits.device) else parts == 1


def launch_shared(logits: Tensor, labels: Tensor, coef: Tensor, head, out) -> None:
    """Write losses and statistics to `out`, gradients over `logits [M, V]`: see cross_entropy.cross_entropy_rows_."""
    m, vocabulary = logits.shape
    block = _block(logits)
    parts = cdiv(vocabulary, block)
    warps = launch("cross_entropy_shared", compute_capability(logits.device))["warps"]
    words = torch.zeros(m * parts * 2, dtype=torch.int64, device=logits.device)
    _shared_kernel[(m * parts,)](
        logits, logits.view(torch.int32), labels, coef, out.loss, out.lse, out.entropy, out.correct, words,
        logits.stride(0), logits.stride(0) // 2, vocabulary, vocabulary // 2, parts, head.logit_scale, head.softcap,
        head.z_loss, head.label_smoothing, head.ignore_index, SOFTCAP=head.softcap != 0.0,
        SMOOTH=head.label_smoothing != 0.0, LANES=block // 8, SLOTS=next_power_of_2(parts), **FUSED,
        num_warps=warps * (2 if head.softcap or head.label_smoothing else 1),  # these need registers
    )  # fmt: skip
