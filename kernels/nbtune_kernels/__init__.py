"""Kernels for training language models: Triton on a GPU, plain torch elsewhere, one file per op.

Each file has its formula at the top and a differentiable `reference` beside the kernel. The functions are leaf ops
(`torch.ops.nbtune.*`, with fake versions): they record nothing for autograd and alias nothing that they do not declare.

    y, rstd = rms_norm(x, weight, 1e-6)
    dx, _ = rms_norm_backward(dy, x, weight, rstd)
"""

from nbtune_kernels.activation import ACTIVATIONS, act_mul, act_mul_backward
from nbtune_kernels.adamw import FusedAdamW
from nbtune_kernels.attention import scored_attention
from nbtune_kernels.cross_entropy import Head
from nbtune_kernels.dropout import dropout, dropout_mask
from nbtune_kernels.embedding import embedding, embedding_backward
from nbtune_kernels.grouped import (
    Groups,
    grouped_combine,
    grouped_gate_backward,
    grouped_rows,
    grouped_sums,
    grouped_turn,
)
from nbtune_kernels.layer_norm import layer_norm, layer_norm_apply, layer_norm_backward
from nbtune_kernels.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy, linear_cross_entropy_loss
from nbtune_kernels.linear_logprobs import (
    LinearLogprobs,
    linear_logprobs,
    linear_logprobs_backward,
    linear_logprobs_of,
)
from nbtune_kernels.lora import grouped_tn, lora_add_, lora_dxa, lora_grads, lora_xa
from nbtune_kernels.products import product, product_into, product_onto
from nbtune_kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_add, rms_norm_apply, rms_norm_backward
from nbtune_kernels.rope import rope
from nbtune_kernels.routing import sort_by_group

__all__ = [
    "ACTIVATIONS",
    "FusedAdamW",
    "Groups",
    "Head",
    "LinearCrossEntropy",
    "LinearLogprobs",
    "act_mul",
    "act_mul_backward",
    "add_rms_norm",
    "dropout",
    "dropout_mask",
    "embedding",
    "embedding_backward",
    "grouped_combine",
    "grouped_gate_backward",
    "grouped_rows",
    "grouped_sums",
    "grouped_tn",
    "grouped_turn",
    "layer_norm",
    "layer_norm_apply",
    "layer_norm_backward",
    "linear_cross_entropy",
    "linear_cross_entropy_loss",
    "linear_logprobs",
    "linear_logprobs_backward",
    "linear_logprobs_of",
    "lora_add_",
    "lora_dxa",
    "lora_grads",
    "lora_xa",
    "product",
    "product_into",
    "product_onto",
    "rms_norm",
    "rms_norm_add",
    "rms_norm_apply",
    "rms_norm_backward",
    "rope",
    "scored_attention",
    "sort_by_group",
]
