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


def cross_entropy_rows_(
    logits: Tensor, labels: Tensor, coef: Tensor | None, head: Head, out: RowStats, lse: Tensor | None = None
) -> None:
    """Fill `out` from `logits [M, V]`, and overwrite logits with their gradients if `coef [M]` (fp32) is given."""
    _rows_torch(logits, labels, coef, head, out, lse)


def _rows_torch(logits, labels, coef, head, out, lse) -> None:
    z = transform(logits, head)
    kept = labels != head.ignore_index
    y = labels.where(kept, 0)[:, None]
    eps, zeta = head.label_smoothing, head.z_loss
    if lse is None:
        top, l = z.max(-1).values, torch.logsumexp(z, -1)
        zy = z.gather(-1, y)[:, 0]
        out.lse.copy_(l)
        loss = l - (1 - eps) * zy + zeta * l * l
        if eps:
            loss = loss - eps * z.mean(-1)
        out.loss.copy_(torch.where(kept, loss, 0.0))
        out.correct.copy_((zy == top) & kept)
        p = torch.exp(z - l[:, None])
        out.entropy.copy_(torch.where(kept, l - torch.linalg.vecdot(p, z), 0.0))
    else:
        l, p = lse, torch.exp(z - lse[:, None])
    if coef is None:
        return
    if zeta:
        p.mul_((1 + 2 * zeta * l)[:, None])
    if eps:
        p.sub_(eps / z.shape[-1])
    p.scatter_add_(-1, y, p.new_full(y.shape, eps - 1.0))
    if head.softcap:
        p.mul_(1 - (z / head.softcap).square_())
    p.mul_((coef * head.logit_scale)[:, None])
    logits.copy_(p.masked_fill_(~kept[:, None], 0.0))
