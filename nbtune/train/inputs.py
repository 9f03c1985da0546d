"""A batch as the arguments of a model's forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nbtune.device.streams import send

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch

_DOCUMENTS, _LENGTHS = 64, 512  # the number of a pack's documents, and the longest, are rounded up to multiples


def model_inputs(batch: Batch, device: torch.device, *, fused: bool = False, labels: bool = True) -> dict[str, Any]:
    """Return the keyword arguments of the model's forward for a batch, on the device.

    Args:
        fused: the head is nbtune's own, which takes the trained rows from the collator instead of finding them among
            `labels` (that would wait for the device). Rows are padded on the right, where no real token sees the
            padding, and none of it is trained: so no mask is sent, which would have to be looked at. How a pack is
            divided is rounded up, so that few shapes come about.
        labels: False: nothing of what is trained, for whoever asks for logits or hidden states and not for the loss.
    """
    tensors = {"input_ids": batch.input_ids, "attention_mask": None if fused else batch.attention_mask}
    if fused and labels:
        tensors |= {"loss_rows": batch.trained_rows, "loss_labels": batch.trained_labels}
        tensors["loss_weights"] = batch.loss_weights
    elif labels:
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
    if fused and labels:
        inputs["loss_only"] = True
    return inputs


def _padded(bounds: torch.Tensor) -> torch.Tensor:
    """Return bounds of documents, with empty ones at the end to make their number a multiple."""
    empty = -(len(bounds) - 1) % _DOCUMENTS
    return torch.cat([bounds, bounds[-1:].expand(empty)])
