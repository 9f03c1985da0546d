"""Log-probabilities of given labels under a linear head (DPO, KTO, ORPO, GRPO), without whole logits.

    logprob_i = z_i[y_i] - lse_i,   z = transform(hidden W^T + b)
    dz_i = dlogprob_i (1_y - softmax(z_i))

The backward pass makes a chunk's logits again from hidden and the saved lse.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbtune_kernels._runtime import op
from nbtune_kernels.cross_entropy import Head, RowStats, cross_entropy_rows_
from nbtune_kernels.cross_entropy import reference as loss_reference
from nbtune_kernels.linear_cross_entropy import _fake_gradients, _flat, _Gradients, chunks


def reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, head: Head | None = None
) -> Tensor:
    """Compute `[N]` fp32 by stock arithmetic on whole logits, differentiable by autograd; 0 where ignored."""
    return -loss_reference(torch.nn.functional.linear(_flat(hidden), weight, bias), labels.reshape(-1), head or Head())


class LinearLogprobs(NamedTuple):
    """fp32 `[M]` each; logprob, entropy and correct (0 or 1) are 0 where the label is ignored."""

    logprobs: Tensor
    lse: Tensor
    entropy: Tensor
    correct: Tensor


@op(
    "linear_logprobs(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, Tensor? rows, float softcap,"
    " float logit_scale, int ignore_index, int chunk) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda hidden, weight, bias, labels, rows, *_: tuple(
        hidden.new_empty(labels.shape[0], dtype=torch.float32) for _ in range(4)
    ),
)
def _linear_logprobs(hidden, weight, bias, labels, rows, softcap, logit_scale, ignore_index, chunk):
    head = Head(softcap, logit_scale, ignore_index=ignore_index)
    m = labels.shape[0]
    stats = RowStats.empty(m, hidden.device)
    for a, b, _, logits in chunks(hidden, weight, bias, rows, m, chunk):
        cross_entropy_rows_(logits, labels[a:b], None, head, RowStats(*(s[a:b] for s in stats)))
    return stats.loss.neg_(), stats.lse, stats.entropy, stats.correct


@op(
    "linear_logprobs_backward(Tensor dlogprobs, Tensor lse, Tensor hidden, Tensor weight, Tensor? bias,"
    " Tensor labels, Tensor? rows, float softcap, float logit_scale, int ignore_index, int chunk, bool need_dhidden,"
    " bool need_dweight) -> (Tensor, Tensor, Tensor)",
    lambda dlogprobs, lse, hidden, weight, bias, labels, rows, cap, scale, ignore, chunk, dh, dw: _fake_gradients(
        hidden, weight, bias, dh, dw
    ),
)
def _linear_logprobs_backward(
    dlogprobs, lse, hidden, weight, bias, labels, rows, softcap, logit_scale, ignore_index, chunk, need_dh, need_dw
):
    head = Head(softcap, logit_scale, ignore_index=ignore_index)
    m = labels.shape[0]
    grads = _Gradients(hidden, weight, bias, rows, (need_dh, need_dw))
    coef = dlogprobs.float().neg()
    for a, b, h, logits in chunks(hidden, weight, bias, rows, m, chunk):
        none = RowStats(*(lse[a:b],) * 4)  # not written when lse is given
        cross_entropy_rows_(logits, labels[a:b], coef[a:b], head, none, lse=lse[a:b])
        grads.add(h, logits, labels, a, b, ignore_index)
    return grads.dhidden, grads.dweight, grads.dbias


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    chunk: int = 0,
) -> LinearLogprobs:
    """Compute the log-probability of each label, fp32 `[N]`; arguments as in `linear_cross_entropy` (temperature t:
    `logit_scale=1/t`)."""
    return LinearLogprobs(
        *_linear_logprobs(
            _flat(hidden), weight, bias, labels.reshape(-1), rows, softcap or 0.0, logit_scale, ignore_index, chunk
        )
    )


def linear_logprobs_backward(
    dlogprobs: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    chunk: int = 0,
    need_dhidden: bool = True,
    need_dweight: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute dhidden (hidden's shape), dweight, dbias (None where not wanted) from `dlogprobs [M]` and the forward's
    lse."""
    dh, dw, db = _linear_logprobs_backward(
        dlogprobs.reshape(-1), lse, _flat(hidden), weight, bias, labels.reshape(-1), rows, softcap or 0.0, logit_scale,
        ignore_index, chunk, need_dhidden, need_dweight,
    )  # fmt: skip
    return (
        dh.view(hidden.shape) if need_dhidden else None,
        dw if need_dweight else None,
        db if need_dweight and bias is not None else None,
    )


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, options: dict) -> tuple:
        out = linear_logprobs(hidden, weight, labels, bias=bias, **options)
        ctx.save_for_backward(out.lse, hidden, weight, bias, labels)
        ctx.options = options
        ctx.mark_non_differentiable(out.entropy, out.correct)
        return out.logprobs, out.entropy, out.correct

    @staticmethod
    def backward(ctx: Any, dlogprobs: Tensor, *_: Any) -> tuple:
        lse, hidden, weight, bias, labels = ctx.saved_tensors
        need = ctx.needs_input_grad
        grads = linear_logprobs_backward(
            dlogprobs, lse, hidden, weight, labels, bias=bias, need_dhidden=need[0], need_dweight=need[1] or need[2],
            **ctx.options,
        )  # fmt: skip
        return (*grads, None, None)


def linear_logprobs_of(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as `linear_logprobs`, for autograd: (logprobs, entropy, correct), each `[M]`; options: rows, softcap,
    logit_scale, chunk, ..."""
    return _Differentiable.apply(hidden, weight, bias, labels, options)
