"""Losses: pure functions of a model and a batch. Each returns a `LossOutput` that is ready for `backward`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from nbtune.data.batches import Batch

__all__ = ["LossOutput", "model_inputs", "sft_loss"]


@dataclass(frozen=True)
class LossOutput:
    """`loss` is a scalar, the sum over this micro-batch's trained tokens divided by the denominator it was given."""

    loss: torch.Tensor


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The keyword arguments of the model's forward for a batch, on the device."""
    inputs: dict[str, Any] = {}
    packed = batch.cu_seqlens is not None
    for name in ("input_ids", "attention_mask", "labels", *(["position_ids"] if packed else [])):
        tensor = getattr(batch, name)
        if tensor is not None:
            inputs[name] = tensor.to(device, non_blocking=True)
    if packed:
        cu_seqlens = batch.cu_seqlens.to(device, non_blocking=True)
        inputs |= {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens}
        inputs |= {"max_length_q": batch.max_seqlen, "max_length_k": batch.max_seqlen}
    return inputs


def sft_loss(model: torch.nn.Module, batch: Batch, *, denominator: int, device: torch.device) -> LossOutput:
    """Cross-entropy of the trained tokens: Σ −log p(label) / denominator.

    Args:
        model: returns an object with `.loss` when called with `labels` and `num_items_in_batch`, as transformers' do.
        batch: input_ids [B, S], labels [B, S] (−100: not trained), unshifted.
        denominator: trained tokens of the whole optimizer step, so that accumulated micro-batches equal one batch.
        device: where the model is.
    """
    output = model(**model_inputs(batch, device), num_items_in_batch=denominator, use_cache=False)
    return LossOutput(loss=output.loss)
