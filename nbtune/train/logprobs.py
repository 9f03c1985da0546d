"""What a model says of answers: their log-probabilities, as the losses of `nbtune.methods` take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nbtune.device import send
from nbtune.errors import TrainError
from nbtune.methods import Answers, Method
from nbtune.train.inputs import model_inputs
from nbtune.train.reference import StartingWeights, in_place_of

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch


def ask(
    model: torch.nn.Module,
    batch: Batch,
    method: Method,
    *,
    device: torch.device,
    start: StartingWeights | None = None,
) -> Answers:
    """Return all that a method wants to know of a batch's answers.

    Args:
        model: with an adapter, unless the method needs no reference.
        batch: pairs side by side (better, worse, better, …), or answers with their `values`.
        device: where the model is.
        start: what the run started with, for the reference; None: with the base.
    Raises:
        TrainError: the method wants a reference, and the model has no adapter to do without.
    """
    compared = method.mismatched and len(batch.examples) > 1  # the last one of an epoch may be alone
    asked = [batch, mismatched(batch)] if compared else [batch]
    # weights change places for it: not between a forward and its backward
    early = start is not None and method.reference
    references = [_reference(model, b, method, device, start) for b in asked] if early else []
    logprobs, tokens = score_answers(model, batch, device=device)
    reference = references[0] if early else _reference(model, batch, method, device, None)
    values = None if method.pairwise or batch.values is None else send(batch.values, device)
    others = None
    if compared:
        with torch.no_grad():
            found = score_answers(model, asked[1], device=device)
        others = Answers(*found, references[1] if early else _reference(model, asked[1], method, device, None))
    return Answers(logprobs, tokens, reference, values, others)


def _reference(
    model: torch.nn.Module, batch: Batch, method: Method, device: torch.device, start: StartingWeights | None
) -> Tensor | None:
    if not method.reference:
        return None
    with torch.no_grad(), in_place_of(model, start):
        return score_answers(model, batch, device=device)[0]


def score_answers(model: torch.nn.Module, batch: Batch, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return summed log-probability and number of the trained tokens of every example, fp32 `[N]` each.

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


def head_disagrees(model: torch.nn.Module) -> str | None:
    """Return why log-probabilities are taken from all of the model's logits although its head looks like one that is
    known."""
    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.accelerate.lm_head import HeadDisagrees, find_head
    from nbtune.models.accelerate.lora_linear import LeftAlone

    lm = causal_lm(model)
    if decoder(lm) is None:
        return None
    try:
        find_head(lm)
    except HeadDisagrees as error:
        return str(error)
    except LeftAlone:
        return None
    return None


def _owners(batch: Batch) -> Tensor:
    """Return which example each of `batch.trained_rows` belongs to, int64 `[R]`."""
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
    """Return every prompt with the answer of the row before it: see `nbtune.methods.Answers`.

    Args:
        batch: at least two examples; packs are taken apart.
    """
    from nbtune.data.batching.collate import collate
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
