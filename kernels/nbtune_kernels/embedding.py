"""Embedding: a gather; its backward pass only where the table is trained.

y[t] = scale * W[ids[t]];      dW[v] = scale * sum of dy[t] over t with ids[t] = v      (in fp32)
"""

import torch
from torch import Tensor

from ._runtime import op


def reference(ids: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """Stock arithmetic, differentiable by autograd."""
    y = torch.nn.functional.embedding(ids, weight)
    return y if scale == 1.0 else y * scale


@op(
    "embedding(Tensor ids, Tensor weight, float scale) -> Tensor",
    lambda ids, weight, scale: weight.new_empty((*ids.shape, weight.shape[1])),
)
def _embedding(ids, weight, scale):
    y = weight.index_select(0, ids.reshape(-1)).view(*ids.shape, weight.shape[1])
    return y if scale == 1.0 else y.mul_(torch.tensor(scale, dtype=y.dtype).item())


@op(
    "embedding_backward(Tensor dy, Tensor ids, int vocabulary, float scale, int padding) -> Tensor",
    lambda dy, ids, vocabulary, scale, padding: dy.new_empty((vocabulary, dy.shape[-1]), dtype=torch.float32),
)
def _embedding_backward(dy, ids, vocabulary, scale, padding):
    flat = dy.reshape(-1, dy.shape[-1]).float()
    dw = torch.ops.aten.embedding_dense_backward(flat, ids.reshape(-1), vocabulary, padding, False)
    return dw if scale == 1.0 else dw.mul_(scale)


def embedding(ids: Tensor, weight: Tensor, *, scale: float = 1.0) -> Tensor:
    """Rows of `weight [V, H]` at `ids [...]`, times `scale` (Gemma's sqrt(H), rounded to the weight's dtype first)."""
    return _embedding(ids, weight, scale)


def embedding_backward(dy: Tensor, ids: Tensor, vocabulary: int, *, scale: float = 1.0, padding: int = -1) -> Tensor:
    """`[V, H]` fp32 gradient of the table from `dy [..., H]`; rows of id `padding` get none."""
    return _embedding_backward(dy, ids, vocabulary, scale, padding)
