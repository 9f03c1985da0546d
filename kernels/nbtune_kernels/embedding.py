"""Embedding: a gather; its backward pass only where the table is trained.

y[t] = scale * W[ids[t]];      dW[v] = scale * sum of dy[t] over t with ids[t] = v      (in fp32)

An id that is not in the table is an error on a CPU; on a GPU its row is NaN, which the loss shows.
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, jit, next_power_of_2, op, tl, use_triton
from nbtune_kernels.tables import launch


def reference(ids: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """Compute `[..., H]` by stock arithmetic, differentiable by autograd."""
    y = torch.nn.functional.embedding(ids, weight)
    return y if scale == 1.0 else y * scale


@jit
def _kernel(
    ids_ptr, w_ptr, y_ptr, w_stride, rows, width, vocabulary, scale,
    SCALED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    live = row < rows
    token = tl.load(ids_ptr + row, live, other=-1).to(tl.int64)
    known = (token >= 0) & (token < vocabulary)
    for start in range(0, width, BLOCK):
        col = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(w_ptr + token * w_stride + col, known & (col < width), other=float("nan"))
        if SCALED:
            x = (x.to(tl.float32) * scale).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + row * width + col, x, live & (col < width))


def _launch(ids: Tensor, weight: Tensor, scale: float) -> Tensor:
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    y = torch.empty((*ids.shape, weight.shape[1]), dtype=weight.dtype, device=ids.device)
    table, n = launch("embedding", compute_capability(ids.device)), ids.numel()
    _kernel[(cdiv(n, table["rows"]),)](
        ids.contiguous(), weight, y, weight.stride(0), n, weight.shape[1], weight.shape[0], scale,
        SCALED=scale != 1.0, ROWS=table["rows"], BLOCK=min(4096, next_power_of_2(weight.shape[1])), **FUSED,
        num_warps=table["warps"],
    )  # fmt: skip
    return y


@op(
    "embedding(Tensor ids, Tensor weight, float scale) -> Tensor",
    lambda ids, weight, scale: weight.new_empty((*ids.shape, weight.shape[1])),
)
def _embedding(ids, weight, scale):
    scale = scale if scale == 1.0 else torch.tensor(scale, dtype=weight.dtype).item()
    if use_triton(weight) and ids.numel():
        return _launch(ids, weight, scale)
    y = weight.index_select(0, ids.reshape(-1)).view(*ids.shape, weight.shape[1])
    return y if scale == 1.0 else y.mul_(scale)


@op(
    "embedding_backward(Tensor dy, Tensor ids, int vocabulary, float scale, int padding) -> Tensor",
    lambda dy, ids, vocabulary, scale, padding: dy.new_empty((vocabulary, dy.shape[-1]), dtype=torch.float32),
)
def _embedding_backward(dy, ids, vocabulary, scale, padding):
    flat = dy.reshape(-1, dy.shape[-1]).float()
    dw = torch.ops.aten.embedding_dense_backward(flat, ids.reshape(-1), vocabulary, padding, False)
    return dw if scale == 1.0 else dw.mul_(scale)


def embedding(ids: Tensor, weight: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return the rows of `weight [V, H]` at int `ids [...]`, `[..., H]` in its dtype, times `scale` (Gemma's sqrt(H),
    rounded to that dtype first)."""
    return _embedding(ids, weight, scale)


def gather(ids: Tensor, table: Tensor) -> Tensor:
    """Return the rows of a table at `ids [...]` of a GPU, on it; the table is in the host's memory, and pinned there:
    the kernel reads it where it is."""
    return _launch(ids, table, 1.0)


def embedding_backward(dy: Tensor, ids: Tensor, vocabulary: int, *, scale: float = 1.0, padding: int = -1) -> Tensor:
    """Compute the gradient of the table, `[V, H]` fp32, from `dy [..., H]`; rows of id `padding` get none."""
    return _embedding_backward(dy, ids, vocabulary, scale, padding)
