"""Rows of logits in, losses and (in place) their gradients out: the inner kernel of the fused heads.

    z = scale * logits;  z = c tanh(z / c) if softcap c > 0
    lse = log sum exp z
    loss = lse - (1 - eps) z_y - eps mean(z) + zeta lse^2          (eps: label smoothing, zeta: z-loss)
    dlogits = coef ((1 + 2 zeta lse) softmax(z) - (1 - eps) 1_y - eps / V) (1 - (z / c)^2) scale
    entropy = lse - sum softmax(z) z;    correct = (z_y = max z)

Rows whose label is `ignore_index` have loss, lse, entropy, correct and gradient 0, whatever their logits are.
`logit_scale` is positive. With lse known from before (`lse=`), only the gradient is made, in one pass.

On a GPU 16-bit rows that get gradients can be shared by several programs (cross_entropy_shared.py; tables.py says
whether they are). The kernel here walks a row with one, in all other cases.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, compute_capability, jit, next_power_of_2, tl, use_triton
from nbtune_kernels.cross_entropy_shared import bend, can_share, launch_shared, slope
from nbtune_kernels.tables import launch


class Head(NamedTuple):
    """What a head does between the matrix product and the loss; zeros switch a part off."""

    softcap: float = 0.0
    logit_scale: float = 1.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    ignore_index: int = -100


def transform(logits: Tensor, head: Head) -> Tensor:
    """Return scaled and soft-capped logits in fp32, `[M, V]`."""
    z = logits.float() * head.logit_scale
    return head.softcap * torch.tanh(z / head.softcap) if head.softcap else z


def reference(logits: Tensor, labels: Tensor, head: Head = Head()) -> Tensor:  # noqa: B008 (immutable)
    """Compute the loss of each row, `[M]` fp32, differentiable by autograd."""
    z = transform(logits, head)
    kept = labels != head.ignore_index
    y = labels.where(kept, 0)
    lse = torch.logsumexp(z, -1)
    loss = lse - (1 - head.label_smoothing) * z.gather(-1, y[:, None])[:, 0] - head.label_smoothing * z.mean(-1)
    return torch.where(kept, loss + head.z_loss * lse.square(), 0.0)


class RowStats(NamedTuple):
    """fp32 `[M]` each."""

    loss: Tensor
    lse: Tensor
    entropy: Tensor
    correct: Tensor

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> "RowStats":
        """Make uninitialised ones, fp32 `[rows]` each."""
        return cls(*(torch.empty(rows, dtype=torch.float32, device=device) for _ in range(4)))


# ---------------------------------------------------------------- Triton: a program walks one row, there and back
#
# Statistics are kept for each lane and joined once after the walk: a reduction at every step would make all warps wait.
# The second walk goes backwards, so that what was read last, and is still in the L2 cache, comes first. An element
# costs few instructions, since that is what limits here: z = u * unit with u = raw (or its tanh), powers of two with
# the factor in a fused multiply-add, and the label's own gradient written afterwards.


@jit
def _add(u, factor, top, total, weighted, plain, SMOOTH: tl.constexpr):
    """Add one more tile `u [LANES, 8]` of a row to the running statistics `[LANES]`; top is in units of u.

    total is the sum of `e = 2^g` with `g = (u - top) factor`, weighted that of `e g`.
    """
    new = tl.maximum(top, tl.max(u, 1))
    g = u * factor - (new * factor)[:, None]
    e = tl.exp2(g)
    total, weighted = _fade(top, new, factor, total, weighted)
    if SMOOTH:
        plain += tl.sum(tl.where(u > -1.0e29, u, 0.0), 1)
    # 0 * -inf; a NaN in g is one in e
    return new, total + tl.sum(e, 1), weighted + tl.sum(e * tl.maximum(g, -1.0e30), 1), plain


@jit
def _fade(top, new, factor, total, weighted):
    """Return the sums with a higher top."""
    shift = (top - new) * factor
    fade = tl.exp2(shift)
    return total * fade, (weighted + total * shift) * fade


@jit
def _kernel(
    logits_ptr, labels_ptr, coef_ptr, loss_ptr, lse_ptr, entropy_ptr, correct_ptr, stride, vocabulary,
    scale, softcap, z_loss, smoothing, ignore_index,
    GRAD: tl.constexpr, KNOWN: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr,
    LANES: tl.constexpr, STAGES: tl.constexpr, KEEP: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = LANES * 8
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    at = tl.arange(0, LANES)[:, None] * 8 + tl.arange(0, 8)[None, :]
    whole = vocabulary // BLOCK * BLOCK
    y = tl.load(labels_ptr + row)
    if y != ignore_index:
        unit = softcap if SOFTCAP else scale
        inner = 2 * scale / softcap if SOFTCAP else 1.0
        factor = unit * 1.4426950408889634  # log2(e)
        # read before the loop's barriers: a warp that runs ahead overwrites logits below
        uy = bend(tl.load(row_ptr + y), inner, SOFTCAP)
        if KNOWN:
            lse = tl.load(lse_ptr + row)
        else:
            top = tl.full((LANES,), -1.0e29, tl.float32)
            total = tl.zeros((LANES,), tl.float32)
            weighted = tl.zeros((LANES,), tl.float32)
            plain = tl.zeros((LANES,), tl.float32)
            for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
                u = bend(tl.load(row_ptr + start + at, eviction_policy=KEEP), inner, SOFTCAP)
                top, total, weighted, plain = _add(u, factor, top, total, weighted, plain, SMOOTH)
            if whole < vocabulary:
                mask = whole + at < vocabulary
                u = bend(tl.load(row_ptr + whole + at, mask, other=0.0), inner, SOFTCAP)
                u = tl.where(mask, u, -1.0e30)
                top, total, weighted, plain = _add(u, factor, top, total, weighted, plain, SMOOTH)
            highest = tl.max(top, 0)
            total, weighted = _fade(top, highest, factor, total, weighted)
            total_row = tl.sum(total, 0)
            lse = highest * unit + tl.log(total_row)
            loss = lse - (1 - smoothing) * uy * unit + z_loss * lse * lse
            if SMOOTH:
                loss -= smoothing * unit * tl.sum(plain, 0) / vocabulary
            tl.store(lse_ptr + row, lse)
            tl.store(loss_ptr + row, loss)
            tl.store(entropy_ptr + row, tl.log(total_row) - tl.sum(weighted, 0) / (total_row * 1.4426950408889634))
            tl.store(correct_ptr + row, tl.where(uy >= highest, 1.0, 0.0))
        if GRAD:
            coef = tl.load(coef_ptr + row) * scale
            high = coef * (1 + 2 * z_loss * lse)
            uniform = coef * smoothing / vocabulary
            lse2 = lse * 1.4426950408889634
            if whole < vocabulary:
                col = whole + at
                mask = col < vocabulary
                u = bend(tl.load(row_ptr + col, mask, other=0.0), inner, SOFTCAP)
                d = slope(u, factor, lse2, high, uniform, SOFTCAP, SMOOTH)
                tl.store(row_ptr + col, d.to(logits_ptr.dtype.element_ty), mask)
            for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
                col = whole - BLOCK - start + at
                u = bend(tl.load(row_ptr + col, eviction_policy="evict_first"), inner, SOFTCAP)
                d = slope(u, factor, lse2, high, uniform, SOFTCAP, SMOOTH)
                tl.store(row_ptr + col, d.to(logits_ptr.dtype.element_ty), eviction_policy=DROP)
            d = slope(uy, factor, lse2, high, uniform, SOFTCAP, SMOOTH)
            label = coef * (1 - smoothing)
            if SOFTCAP:
                label *= 1 - uy * uy
            tl.debug_barrier()  # after the loop's own store of this element
            tl.store(row_ptr + y, (d - label).to(logits_ptr.dtype.element_ty))
    else:
        if not KNOWN:
            tl.store(lse_ptr + row, 0.0)
            tl.store(loss_ptr + row, 0.0)
            tl.store(entropy_ptr + row, 0.0)
            tl.store(correct_ptr + row, 0.0)
        if GRAD:
            zero = tl.zeros((LANES, 8), logits_ptr.dtype.element_ty)
            for start in range(0, vocabulary, BLOCK):
                tl.store(row_ptr + start + at, zero, start + at < vocabulary)


def _launch(logits, labels, coef, head, out, lse) -> None:
    if coef is not None and lse is None and can_share(logits):
        return launch_shared(logits, labels, coef, head, out)
    m, vocabulary = logits.shape
    table = launch("cross_entropy" if coef is not None else "cross_entropy_stats", compute_capability(logits.device))
    stats = out if lse is None else out._replace(lse=lse)
    # soft-capping and smoothing need registers; with several tiles a row, loads overlap with the rest
    most = table["block"] // 2 if head.softcap or head.label_smoothing else table["block"]
    block = max(8, min(most, next_power_of_2(vocabulary) // 4))
    _kernel[(m,)](
        logits, labels, out.loss if coef is None else coef, stats.loss, stats.lse, stats.entropy, stats.correct,
        logits.stride(0), vocabulary, head.logit_scale, head.softcap, head.z_loss, head.label_smoothing,
        head.ignore_index, GRAD=coef is not None, KNOWN=lse is not None, SOFTCAP=head.softcap != 0.0,
        SMOOTH=head.label_smoothing != 0.0, LANES=block // 8, STAGES=table["stages"], KEEP=table["keep"],
        DROP=table["drop"], **FUSED, num_warps=max(1, table["warps"] * block // most),
    )  # fmt: skip


# ---------------------------------------------------------------- plain torch


_TORCH_BYTES = 2**23  # of rows in fp32 at once on a CPU: there are five copies of these at a time


def _rows_torch(logits, labels, coef, head, out, lse) -> None:
    z = transform(logits, head)
    kept = labels != head.ignore_index
    y = labels.where(kept, 0)[:, None]
    eps, zeta = head.label_smoothing, head.z_loss
    if lse is None:
        top, lse = z.max(-1).values, torch.logsumexp(z, -1)
        zy = z.gather(-1, y)[:, 0]
        out.lse.copy_(torch.where(kept, lse, 0.0))
        loss = lse - (1 - eps) * zy + zeta * lse * lse
        if eps:
            loss = loss - eps * z.mean(-1)
        out.loss.copy_(torch.where(kept, loss, 0.0))
        out.correct.copy_((zy == top) & kept)
        p = torch.exp(z - lse[:, None])
        out.entropy.copy_(torch.where(kept, torch.linalg.vecdot(p, lse[:, None] - z.clamp(min=-1e30)), 0.0))
    else:
        p = torch.exp(z - lse[:, None])
    if coef is None:
        return
    if zeta:
        p.mul_((1 + 2 * zeta * lse)[:, None])
    if eps:
        p.sub_(eps / z.shape[-1])
    p.scatter_add_(-1, y, p.new_full(y.shape, eps - 1.0))
    if head.softcap:
        p.mul_(1 - (z / head.softcap).square_())
    p.mul_((coef * head.logit_scale)[:, None])
    logits.copy_(p.masked_fill_(~kept[:, None], 0.0))


def cross_entropy_rows_(
    logits: Tensor, labels: Tensor, coef: Tensor | None, head: Head, out: RowStats, lse: Tensor | None = None
) -> None:
    """Fill `out` from `logits [M, V]`, and overwrite logits with their gradients if `coef [M]` (fp32) is given.

    Labels are contiguous int64 `[M]`. With `lse [M]` nothing is written to `out`.
    """
    if use_triton(logits):
        _launch(logits, labels, coef, head, out, lse)
        return
    size = max(1, _TORCH_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else max(1, len(logits))
    for a in range(0, len(logits), size):
        part = slice(a, a + size)
        some = RowStats(*(stat[part] for stat in out))
        mine, known = (None if one is None else one[part] for one in (coef, lse))
        _rows_torch(logits[part], labels[part], mine, head, some, known)
