"""Rows of logits in, losses and (in place) their gradients out: the inner kernel of the fused heads.

    z = scale * logits;  z = c tanh(z / c) if softcap c > 0
    lse = log sum exp z
    loss = lse - (1 - eps) z_y - eps mean(z) + zeta lse^2          (eps: label smoothing, zeta: z-loss)
    dlogits = coef ((1 + 2 zeta lse) softmax(z) - (1 - eps) 1_y - eps / V) (1 - (z / c)^2) scale
    entropy = lse - sum softmax(z) z;    correct = (z_y = max z)

Rows whose label is `ignore_index` have loss, entropy, correct and gradient 0, whatever their logits are. With lse known
from before (`lse=`), only the gradient is made, in one pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ._runtime import FUSED, compute_capability, jit, next_power_of_2, tl, use_triton
from .tables import launch


class Head(NamedTuple):
    """What a head does between the matrix product and the loss; zeros switch a part off."""

    softcap: float = 0.0
    logit_scale: float = 1.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    ignore_index: int = -100


def transform(logits: Tensor, head: Head) -> Tensor:
    """Scaled and soft-capped logits in fp32."""
    z = logits.float() * head.logit_scale
    return head.softcap * torch.tanh(z / head.softcap) if head.softcap else z


def reference(logits: Tensor, labels: Tensor, head: Head = Head()) -> Tensor:  # noqa: B008 (immutable)
    """Loss of each row, `[M]` fp32, differentiable by autograd."""
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
        """Uninitialised."""
        return cls(*(torch.empty(rows, dtype=torch.float32, device=device) for _ in range(4)))


# ---------------------------------------------------------------- Triton: a program walks one row, there and back
#
# Lane-wise statistics, joined once after the walk: a reduction over the block at every step would make all warps wait.
# The second walk goes backwards, so that what was read last, and is still in the L2 cache, comes first.


@jit
def _transform(raw, scale, softcap, SOFTCAP: tl.constexpr):
    """Scaled and capped logits; those below -1e30 (banned ones are -inf) count as -1e30, NaN stays."""
    z = raw.to(tl.float32) * scale
    if SOFTCAP:
        z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)  # tanh
    return tl.where(z < -1.0e30, -1.0e30, z)


@jit
def _add(z, top, total, weighted, plain, SMOOTH: tl.constexpr):
    """One more tile `z [LANES, 8]` of a row in the running statistics `[LANES]`."""
    new = tl.maximum(top, tl.max(z, 1))
    e = tl.exp(z - new[:, None])
    fade = tl.exp(top - new)
    if SMOOTH:
        plain += tl.sum(tl.where(z > -1.0e30, z, 0.0), 1)
    return new, total * fade + tl.sum(e, 1), weighted * fade + tl.sum(e * z, 1), plain


@jit
def _gradient(
    z, col, y, kept, lse, peak, coef, softcap, smoothing, uniform, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr
):
    d = peak * tl.exp(z - lse) - tl.where(col == y, 1 - smoothing, 0.0)
    if SMOOTH:
        d -= uniform
    if SOFTCAP:
        d *= 1 - (z / softcap) * (z / softcap)
    return tl.where(kept, d * coef, 0.0)


@jit
def _kernel(
    logits_ptr, labels_ptr, coef_ptr, loss_ptr, lse_ptr, entropy_ptr, correct_ptr, stride, vocabulary,
    scale, softcap, z_loss, smoothing, ignore_index,
    GRAD: tl.constexpr, KNOWN: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr,
    LANES: tl.constexpr, STAGES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = LANES * 8
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    at = tl.arange(0, LANES)[:, None] * 8 + tl.arange(0, 8)[None, :]
    whole = vocabulary // BLOCK * BLOCK
    label = tl.load(labels_ptr + row)
    kept = label != ignore_index
    y = tl.where(kept, label, 0)
    if KNOWN:
        lse = tl.load(lse_ptr + row)
    else:
        # read before the loop's barriers: a warp that runs ahead overwrites logits below
        zy = _transform(tl.load(row_ptr + y), scale, softcap, SOFTCAP)
        top = tl.full((LANES,), -1.0e29, tl.float32)
        total = tl.zeros((LANES,), tl.float32)
        weighted = tl.zeros((LANES,), tl.float32)
        plain = tl.zeros((LANES,), tl.float32)
        for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
            raw = tl.load(row_ptr + start + at, eviction_policy=KEEP)
            z = _transform(raw, scale, softcap, SOFTCAP)
            top, total, weighted, plain = _add(z, top, total, weighted, plain, SMOOTH)
        if whole < vocabulary:
            mask = whole + at < vocabulary
            z = _transform(tl.load(row_ptr + whole + at, mask, other=0.0), scale, softcap, SOFTCAP)
            top, total, weighted, plain = _add(tl.where(mask, z, -1.0e30), top, total, weighted, plain, SMOOTH)
        highest = tl.max(top, 0)
        fade = tl.exp(top - highest)
        total_row = tl.sum(total * fade, 0)
        lse = highest + tl.log(total_row)
        loss = lse - (1 - smoothing) * zy + z_loss * lse * lse
        if SMOOTH:
            loss -= smoothing * tl.sum(plain, 0) / vocabulary
        tl.store(lse_ptr + row, lse)
        tl.store(loss_ptr + row, tl.where(kept, loss, 0.0))
        tl.store(entropy_ptr + row, tl.where(kept, lse - tl.sum(weighted * fade, 0) / total_row, 0.0))
        tl.store(correct_ptr + row, tl.where(kept & (zy >= highest), 1.0, 0.0))
    if GRAD:
        coef = tl.load(coef_ptr + row) * scale
        peak = 1 + 2 * z_loss * lse
        uniform = smoothing / vocabulary
        if whole < vocabulary:
            col = whole + at
            mask = col < vocabulary
            z = _transform(tl.load(row_ptr + col, mask, other=0.0), scale, softcap, SOFTCAP)
            d = _gradient(z, col, y, kept, lse, peak, coef, softcap, smoothing, uniform, SOFTCAP, SMOOTH)
            tl.store(row_ptr + col, d.to(logits_ptr.dtype.element_ty), mask)
        for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
            col = whole - BLOCK - start + at
            z = _transform(tl.load(row_ptr + col), scale, softcap, SOFTCAP)
            d = _gradient(z, col, y, kept, lse, peak, coef, softcap, smoothing, uniform, SOFTCAP, SMOOTH)
            tl.store(row_ptr + col, d.to(logits_ptr.dtype.element_ty))


def _launch(logits, labels, coef, head, out, lse) -> None:
    m, vocabulary = logits.shape
    table = launch("cross_entropy", compute_capability(logits.device))
    stats = out if lse is None else out._replace(lse=lse)
    _kernel[(m,)](
        logits, labels, out.loss if coef is None else coef, stats.loss, stats.lse, stats.entropy, stats.correct,
        logits.stride(0), vocabulary, head.logit_scale, head.softcap, head.z_loss, head.label_smoothing,
        head.ignore_index, GRAD=coef is not None, KNOWN=lse is not None, SOFTCAP=head.softcap != 0.0,
        SMOOTH=head.label_smoothing != 0.0, LANES=max(1, min(table["block"], next_power_of_2(vocabulary)) // 8),
        STAGES=table["stages"], KEEP=table["keep"], **FUSED, num_warps=table["warps"],
    )  # fmt: skip


# ---------------------------------------------------------------- plain torch


def _rows_torch(logits, labels, coef, head, out, lse) -> None:
    z = transform(logits, head)
    kept = labels != head.ignore_index
    y = labels.where(kept, 0)[:, None]
    eps, zeta = head.label_smoothing, head.z_loss
    if lse is None:
        top, lse = z.max(-1).values, torch.logsumexp(z, -1)
        zy = z.gather(-1, y)[:, 0]
        out.lse.copy_(lse)
        loss = lse - (1 - eps) * zy + zeta * lse * lse
        if eps:
            loss = loss - eps * z.mean(-1)
        out.loss.copy_(torch.where(kept, loss, 0.0))
        out.correct.copy_((zy == top) & kept)
        p = torch.exp(z - lse[:, None])
        out.entropy.copy_(torch.where(kept, lse - torch.linalg.vecdot(p, z.clamp(min=-1e30)), 0.0))
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
    run = _launch if use_triton(logits) else _rows_torch
    run(logits, labels, coef, head, out, lse)
