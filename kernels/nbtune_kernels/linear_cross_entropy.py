"""Head and cross-entropy in one: logits exist for one chunk of rows at a time, and only for trained rows.

    logits = hidden W^T + b;   loss = sum_i w_i scale loss_i            (loss_i: see cross_entropy.py)
    dhidden = dlogits W;       dW = dlogits^T hidden;    db = sum dlogits

The gradients are made in the forward pass, while a chunk's logits are there. The row kernel overwrites logits with
their gradient, so a chunk costs one `[rows, V]` buffer and three (two, with a frozen head) cuBLAS products.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, jit, op, tl, use_triton
from nbtune_kernels.cross_entropy import Head, RowStats, cross_entropy_rows_
from nbtune_kernels.cross_entropy import reference as loss_reference
from nbtune_kernels.products import product, product_into


def reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | None = None,
    token_weights: Tensor | None = None,
    head: Head = Head(),  # noqa: B008 (immutable)
) -> Tensor:
    """Compute the loss (a scalar `[]`) by stock arithmetic on whole logits, differentiable by autograd."""
    logits = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), weight, bias)
    losses = loss_reference(logits, labels.reshape(-1), head)
    return (losses if token_weights is None else losses * token_weights.reshape(-1)).sum() * scale


class LinearCrossEntropy(NamedTuple):
    """Results of `linear_cross_entropy`.

    loss: fp32 scalar, `sum w_i scale loss_i`. losses: fp32 `[M]`, per row, without weights and scale, 0 where ignored.
    entropy, correct: fp32 scalars, sums over the trained rows (divide by their number). dhidden: hidden's shape, or
    None. dweight `[V, H]`, dbias `[V]`: or None.
    """

    loss: Tensor
    losses: Tensor
    entropy: Tensor
    correct: Tensor
    dhidden: Tensor | None
    dweight: Tensor | None
    dbias: Tensor | None


def chunk_rows(count: int, vocabulary: int, itemsize: int, device: torch.device) -> int:
    """Return how many rows of logits are held at once: 512 MiB of them on a GPU (where larger products run no faster),
    32 MiB on a CPU."""
    budget = 2**29 if device.type != "cpu" else 2**25
    limit = max(1, budget // (vocabulary * itemsize))
    if limit >= count:
        return max(1, count)
    chunks = -(-count // limit)
    even = -(-count // chunks)
    return min(limit, -(-even // 128) * 128) if limit >= 128 else limit


class Chunk(NamedTuple):
    """Rows a to b of those that are used: their hidden states and logits."""

    a: int
    b: int
    hidden: Tensor
    logits: Tensor


def chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None, count: int, chunk: int
) -> Iterator[Chunk]:
    """Yield the logits `[chunk, V]` of `count` rows, some at a time, in one buffer that is written over."""
    vocabulary = weight.shape[0]
    size = chunk or chunk_rows(count, vocabulary, hidden.element_size(), hidden.device)
    pitch = cdiv(vocabulary, 64) * 64 if hidden.is_cuda else vocabulary  # rows that start at 128 bytes
    buffer = torch.empty((min(size, count), pitch), dtype=hidden.dtype, device=hidden.device)[:, :vocabulary]
    for a in range(0, count, size):
        b = min(a + size, count)
        h = hidden[a:b] if rows is None else hidden.index_select(0, rows[a:b])
        out = buffer[: b - a]
        product_into(out, h, weight, bias)
        yield Chunk(a, b, h, out)


@jit
def _put_kernel(d_ptr, rows_ptr, labels_ptr, out_ptr, width, ignore_index, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    if tl.load(labels_ptr + i) != ignore_index:
        row = tl.load(rows_ptr + i).to(tl.int64)
        for start in range(0, width, BLOCK):
            col = start + tl.arange(0, BLOCK)
            d = tl.load(d_ptr + i * width + col, col < width, other=0.0)
            tl.store(out_ptr + row * width + col, d, col < width)


def _put(dhidden: Tensor, d: Tensor, rows: Tensor, labels: Tensor, ignore: int) -> None:
    """Scatter rows of gradient. Padding (ignored, all zero) may name any row: it is skipped, or adds zero."""
    if use_triton(d):
        _put_kernel[(d.shape[0],)](d, rows, labels, dhidden, d.shape[1], ignore, BLOCK=1024, **FUSED, num_warps=4)
    else:
        dhidden.index_add_(0, rows, d)


class _Gradients:
    """The three products that follow a chunk's dlogits."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None, want: tuple[bool, bool]
    ):
        self.hidden, self.weight, self.rows = hidden, weight, rows
        none = hidden.new_empty(0)
        fresh = torch.empty if rows is None else torch.zeros
        self.dhidden = fresh(hidden.shape, dtype=hidden.dtype, device=hidden.device) if want[0] else none
        self.dweight = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device) if want[1] else none.clone()
        self.dbias = torch.zeros_like(bias) if want[1] and bias is not None else none.clone()

    def add(self, h: Tensor, dlogits: Tensor, labels: Tensor, a: int, b: int, ignore: int) -> None:
        if self.dhidden.numel() and self.rows is None:
            product_into(self.dhidden[a:b], dlogits, self.weight.t())
        elif self.dhidden.numel():
            assert self.rows is not None
            _put(self.dhidden, product(dlogits, self.weight.t()), self.rows[a:b], labels[a:b], ignore)
        if self.dweight.numel():
            self.dweight.addmm_(dlogits.t(), h)
        if self.dbias.numel():
            self.dbias.add_(dlogits.sum(0, dtype=torch.float32).to(self.dbias.dtype))


def _fake(hidden, weight, bias, labels, rows, coef, head, ignore_index, chunk, need_dhidden, need_dweight):
    m = labels.shape[0]
    stats = [hidden.new_empty(m, dtype=torch.float32) for _ in range(4)]
    return (*stats, *_fake_gradients(hidden, weight, bias, need_dhidden, need_dweight))


def _fake_gradients(hidden, weight, bias, need_dhidden, need_dweight):
    return (
        hidden.new_empty(hidden.shape if need_dhidden else 0),
        weight.new_empty(weight.shape if need_dweight else 0),
        weight.new_empty(bias.shape if need_dweight and bias is not None else 0),
    )


@op(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, Tensor? rows, Tensor? coef,"
    " float[] head, int ignore_index, int chunk, bool need_dhidden, bool need_dweight)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake,
)
def _linear_cross_entropy(
    hidden, weight, bias, labels, rows, coef, head, ignore_index, chunk, need_dhidden, need_dweight
):
    options = Head(*head, ignore_index)  # type: ignore[call-arg]
    m = labels.shape[0]
    stats = RowStats.empty(m, hidden.device)
    grads = _Gradients(hidden, weight, bias, rows, (need_dhidden, need_dweight))
    for a, b, h, logits in chunks(hidden, weight, bias, rows, m, chunk):
        part = RowStats(*(s[a:b] for s in stats))
        cross_entropy_rows_(logits, labels[a:b], None if coef is None else coef[a:b], options, part)
        if coef is not None:
            grads.add(h, logits, labels, a, b, ignore_index)
    return (*stats, grads.dhidden, grads.dweight, grads.dbias)


def _flat(hidden: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    """Return an fp32 scalar on the device; a number is filled in there, a copy from the host would wait."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=torch.float32)
    return torch.full((), value, dtype=torch.float32, device=device)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    scale: Tensor | float = 1.0,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    token_weights: Tensor | None = None,
    grad_scale: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    need_dhidden: bool = True,
    need_dweight: bool = False,
    chunk: int = 0,
) -> LinearCrossEntropy:
    """Compute the loss of a linear head, with its gradients, without whole logits. Nothing here waits for the device.

    Args:
        hidden: `[..., H]`, flattened to N rows.
        weight: `[V, H]` in hidden's dtype.
        labels: one per row that is used: `[N]` in any shape without `rows`, else `[M]`. Already shifted.
        scale: `1 / num_items`: a float, or an fp32 scalar on the device.
        rows: `[M]` int64, which rows of hidden are used; padding repeats any valid row, with an ignored label.
        token_weights: `[M]`, multiplies each row's loss and gradient.
        grad_scale: fp32 device scalar multiplied into the gradients only (fp16 loss scaling, an incoming gradient).
        softcap: Gemma 2's c in `c tanh(z / c)`; logit_scale: Cohere's, or 1 / Granite's.
        z_loss, label_smoothing: see cross_entropy.py.
        need_dhidden, need_dweight: which gradients are made (dweight covers dbias).
        chunk: rows of logits at once (0: by `chunk_rows`).
    """
    flat, y = _flat(hidden), labels.reshape(-1)
    base = _scalar(scale, hidden.device)
    weights = base.expand(y.shape[0]) if token_weights is None else token_weights.reshape(-1).float() * base
    coef = None
    if need_dhidden or need_dweight:
        coef = (weights if grad_scale is None else weights * grad_scale).contiguous()
    head = [softcap or 0.0, logit_scale, z_loss, label_smoothing]
    losses, _, entropy, correct, dh, dw, db = _linear_cross_entropy(
        flat, weight, bias, y, rows, coef, head, ignore_index, chunk, need_dhidden, need_dweight
    )
    return LinearCrossEntropy(
        loss=torch.dot(losses, weights),
        losses=losses,
        entropy=entropy.sum(),
        correct=correct.sum(),
        dhidden=dh.view(hidden.shape) if need_dhidden else None,
        dweight=dw if need_dweight else None,
        dbias=db if need_dweight and bias is not None else None,
    )


@jit
def _times_kernel(x_ptr, factor_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, at < n, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (x * tl.load(factor_ptr)).to(y_ptr.dtype.element_ty), at < n)


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply x by an fp32 scalar on the device, in fp32 (which torch would round to x's dtype first)."""
    if not use_triton(x):
        return (x.float() * factor).to(x.dtype)
    x = x.contiguous()
    y = torch.empty_like(x)
    _times_kernel[(cdiv(x.numel(), 1024),)](x, factor, y, x.numel(), BLOCK=1024, **FUSED, num_warps=4)
    return y


class _Differentiable(torch.autograd.Function):
    """Makes the gradients in the forward pass. In fp16 by a part of `scale` only, and by the rest once the incoming
    gradient with its loss scale is there: 1 / num_items alone would push most of softmax below fp16's smallest number.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, options: dict) -> tuple:
        train_head = weight.requires_grad or (bias is not None and bias.requires_grad)
        scale = _scalar(options.pop("scale", 1.0), hidden.device)
        inner = (scale * 1024).clamp(max=1.0) if hidden.dtype == torch.float16 else scale
        out = linear_cross_entropy(
            hidden, weight, labels, bias=bias, need_dhidden=hidden.requires_grad, need_dweight=train_head, scale=inner,
            **options,
        )  # fmt: skip
        rest = scale / inner if hidden.dtype == torch.float16 else None
        ctx.save_for_backward(out.dhidden, out.dweight, out.dbias, rest)
        ctx.mark_non_differentiable(out.losses, out.entropy, out.correct)
        loss = out.loss if rest is None else out.loss * rest
        return loss, out.losses, out.entropy, out.correct

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, *_: Any) -> tuple:
        *grads, rest = ctx.saved_tensors
        factor = dloss.float() if rest is None else dloss.float() * rest
        return (*(None if g is None else _times(g, factor) for g in grads), None, None)


def linear_cross_entropy_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do as `linear_cross_entropy`, for autograd: (loss `[]`, losses `[M]`, entropy `[]`, correct `[]`).

    Options as there, without `need_*`.
    """
    return _Differentiable.apply(hidden, weight, bias, labels, dict(options))
