"""Losses: pure functions of a model and a batch. Each returns a `LossOutput` that is ready for `backward`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nbtune.device import send

if TYPE_CHECKING:
    from nbtune.data.batching.sampler import Batch

__all__ = ["LossOutput", "model_inputs", "sft_loss"]

_DOCUMENTS, _LENGTHS = 64, 512  # the number of a pack's documents, and the longest, are rounded up to multiples


@dataclass(frozen=True)
class LossOutput:
    """`loss` is a scalar, the sum over this micro-batch's trained tokens divided by the denominator it was given."""

    loss: torch.Tensor


def model_inputs(batch: Batch, device: torch.device, *, fused: bool = False) -> dict[str, Any]:
    """The keyword arguments of the model's forward for a batch, on the device.

    Args:
        fused: the head is nbtune's own, which takes the trained rows from the collator instead of finding them among
            `labels` (that would wait for the device). Rows are padded on the right, where no real token sees the
            padding, and none of it is trained: so no mask is sent, which would have to be looked at. How a pack is
            divided is rounded up, so that few shapes come about.
    """
    tensors = {"input_ids": batch.input_ids, "attention_mask": None if fused else batch.attention_mask}
    if fused:
        tensors |= {"loss_rows": batch.trained_rows, "loss_labels": batch.trained_labels}
        tensors["loss_weights"] = batch.loss_weights
    else:
        tensors["labels"] = batch.labels
    longest = batch.max_seqlen or 0
    if batch.cu_seqlens is not None:
        bounds = _padded(batch.cu_seqlens) if fused else batch.cu_seqlens
        tensors |= {"position_ids": batch.position_ids, "cu_seq_lens_q": bounds}
        longest = min(-(-longest // _LENGTHS) * _LENGTHS, batch.input_ids.shape[1]) if fused else longest
    inputs: dict[str, Any] = {name: send(tensor, device) for name, tensor in tensors.items() if tensor is not None}
    if batch.cu_seqlens is not None:
        inputs["cu_seq_lens_k"] = inputs["cu_seq_lens_q"]
        inputs |= {"max_length_q": longest, "max_length_k": longest}
    if fused:
        inputs["loss_only"] = True
    return inputs


def _padded(bounds: torch.Tensor) -> torch.Tensor:
    """Bounds of documents, with empty ones at the end to make their number a multiple."""
    empty = -(len(bounds) - 1) % _DOCUMENTS
    return torch.cat([bounds, bounds[-1:].expand(empty)])


def sft_loss(
    model: torch.nn.Module, batch: Batch, *, denominator: float, device: torch.device, fused: bool = False
) -> LossOutput:
    """Cross-entropy of the trained tokens: Σ −w log p(label) / denominator, w the weight of the label's row.

    Args:
        model: returns an object with `.loss` when called with `labels` and `num_items_in_batch`, as transformers' do.
        batch: input_ids [B, S], labels [B, S] (−100: not trained), unshifted.
        denominator: trained tokens (Σ w) of the whole optimizer step, so that accumulated micro-batches equal one.
        device: where the model is.
        fused: see `model_inputs`.
    """
    inputs = model_inputs(batch, device, fused=fused)
    if batch.loss_weights is not None and not fused:
        del inputs["labels"]
        rows, labels, weights = (
            send(t, device) for t in (batch.trained_rows, batch.trained_labels, batch.loss_weights)
        )
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[rows].float()
        losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
        return LossOutput(loss=torch.dot(losses, weights) / denominator)
    return LossOutput(loss=model(**inputs, num_items_in_batch=denominator, use_cache=False).loss)
