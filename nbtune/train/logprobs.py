"""What a model says of answers: their log-probabilities, as the losses of `nbtune.methods` take them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nbtune.device import send
from nbtune.errors import TrainError
from nbtune.methods import Answers, Method, without_reference
from nbtune.train.inputs import model_inputs

if TYPE_CHECKING:
    from nbtune.data.batching.sampler import Batch

__all__ = ["ask", "mismatched", "score_answers"]


def ask(model: torch.nn.Module, batch: Batch, method: Method, *, device: torch.device) -> Answers:
    """Return all that a method wants to know of a batch's answers.

    Args:
        model: with an adapter, unless the method needs no reference.
        batch: pairs side by side (better, worse, better, …), or answers with their `values`.
        device: where the model is.
    Raises:
        TrainError: the method wants a reference, and the model has no adapter to do without.
    """
    logprobs, tokens, reference = _with_reference(model, batch, method, device)
    values = None if method.pairwise or batch.values is None else send(batch.values, device)
    others = None
    if method.mismatched and len(batch.examples) > 1:  # the last one of an epoch may be alone
        with torch.no_grad():
            others = Answers(*_with_reference(model, mismatched(batch), method, device))
    return Answers(logprobs, tokens, reference, values, others)


def _with_reference(
    model: torch.nn.Module, batch: Batch, method: Method, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    logprobs, tokens = score_answers(model, batch, device=device)
    if not method.reference:
        return logprobs, tokens, None
    with torch.no_grad(), _without_adapter(model):
        reference, _ = score_answers(model, batch, device=device)
    return logprobs, tokens, reference


def _without_adapter(model: Any) -> AbstractContextManager[Any]:
    if not hasattr(model, "disable_adapter"):
        raise TrainError(
            "this method compares with a reference model, which is the model without its adapter",
            fix=f"write `adapter: lora`, or a method without a reference ({', '.join(without_reference())})",
        )
    return model.disable_adapter()  # type: ignore[no-any-return]


def score_answers(model: torch.nn.Module, batch: Batch, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Summed log-probability and number of the trained tokens of every example, fp32 `[N]` each.

    Args:
        model: a causal language model, accelerated or not, with an adapter or not.
        batch: padded rows, or packs.
    """
    from nbtune_kernels import linear_logprobs_of

    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.accelerate.lm_head import find_head
    from nbtune.models.accelerate.lora_linear import LeftAlone

    owners, count = _owners(batch), len(batch.examples)
    lm: Any = causal_lm(model)
    inner, labels = decoder(lm), send(batch.trained_labels, device)
    rows, owner = send(batch.trained_rows, device), send(owners, device)
    inputs = model_inputs(batch, device, fused=True)
    for name in ("loss_rows", "loss_labels", "loss_weights", "loss_only"):
        inputs.pop(name, None)
    try:
        head = find_head(lm) if inner is not None else None
    except LeftAlone:
        head = None
    if head is None or inner is None:
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[rows].float()
        found = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels != -100)
    else:
        hidden = inner(**inputs, use_cache=False, return_dict=True).last_hidden_state
        found, *_ = linear_logprobs_of(
            hidden, head.module.weight, labels, bias=head.module.bias, rows=rows, softcap=head.softcap,
            logit_scale=head.logit_scale,
        )  # fmt: skip
    zeros = torch.zeros(count, dtype=torch.float32, device=device)
    return zeros.index_add(0, owner, found), zeros.index_add(0, owner, (labels != -100).float())


def _owners(batch: Batch) -> Tensor:
    """Which example each of `batch.trained_rows` belongs to, int64 `[R]`."""
    rows = batch.trained_rows.numpy()
    if batch.cu_seqlens is None:
        return torch.from_numpy(rows // batch.input_ids.shape[1])
    documents = np.searchsorted(batch.cu_seqlens.numpy(), rows, side="right") - 1
    trained = batch.trained_labels.numpy() != -100
    known, place = np.unique(documents[trained], return_inverse=True)  # padding is a document too, without labels
    if len(known) != len(batch.examples):
        raise TrainError("an answer has no tokens to learn from", fix="leave such rows out, or set `packing: false`")
    owners = np.zeros_like(rows)
    owners[trained] = place
    return torch.from_numpy(owners)


def mismatched(batch: Batch) -> Batch:
    """Every prompt with the answer of the row before it: see `nbtune.methods.Answers`.

    Args:
        batch: at least two examples; packs are taken apart.
    """
    from nbtune.data.batching.sampler import collate
    from nbtune.data.prepare.dataset import Builder

    batch = batch.unpacked() if batch.cu_seqlens is not None else batch
    ids, labels = batch.input_ids.numpy(), batch.labels.numpy()
    lengths = [ids.shape[1]] * len(ids) if batch.attention_mask is None else batch.attention_mask.sum(1).tolist()
    starts = [int(np.argmax(row != -100)) for row in labels]
    builder = Builder(["mismatched"])
    for i, start in enumerate(starts):
        answer = slice(starts[i - 1], lengths[i - 1])
        trained = np.concatenate([np.zeros(start, bool), labels[i - 1, answer] != -100])
        builder.add(np.concatenate([ids[i, :start], ids[i - 1, answer]]).astype(np.int32), trained, 0, i)
    return collate(builder.build(), list(range(len(ids))))
