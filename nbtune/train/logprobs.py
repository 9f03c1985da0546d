"""What a model says of answers: their log-probabilities, as the losses of `nbtune.methods` take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nbtune.device.streams import send
from nbtune.errors import TrainError
from nbtune.methods import Answers, Method
from nbtune.train.inputs import model_inputs
from nbtune.train.reference import StartingWeights, in_place_of

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch


def answers_of(
    model: torch.nn.Module,
    batch: Batch,
    method: Method,
    *,
    device: torch.device,
    start: StartingWeights | None = None,
    mismatched: Answers | None = None,
    step: Answers | None = None,
) -> Answers:
    """Return all that a method wants to know of a batch's answers.

    Args:
        model: with an adapter, unless the method needs no reference.
        batch: pairs side by side (better, worse, better, …), or answers with their `values`.
        device: where the model is.
        start: what the run started with, for the reference; None: with the base.
        mismatched, step: as in `Answers`, asked before.
    Raises:
        TrainError: the method wants a reference, and the model has no adapter to do without.
    """
    # weights change places for it: not between a forward and its backward
    early = start is not None and method.reference
    reference = reference_of(model, batch, method, device, start) if early else None
    logprobs, tokens = score_answers(model, batch, device=device)
    if not early:
        reference = reference_of(model, batch, method, device, None)
    values = None if method.pairwise or batch.values is None else send(batch.values, device)
    weights = None if batch.example_weights is None else send(batch.example_weights, device)
    return Answers(logprobs, tokens, reference, values, weights, mismatched, step)


def reference_of(
    model: torch.nn.Module, batch: Batch, method: Method, device: torch.device, start: StartingWeights | None
) -> Tensor | None:
    """Return what the reference says of a batch's answers, fp32 `[N]`; None for methods without one."""
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
    from nbtune.models.accelerate.lm_head import find_head, has_head

    owners, count = _owners(batch), len(batch.examples)
    lm: Any = causal_lm(model)
    inner, labels = decoder(lm), send(batch.trained_labels, device)
    rows, owner = send(batch.trained_rows, device), send(owners, device)
    inputs = model_inputs(batch, device, fused=True, labels=False)
    if inner is None or not has_head(lm):
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[rows].float()
        logprobs = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels != -100)
    else:
        head = find_head(lm)
        hidden = inner(**inputs, use_cache=False, return_dict=True).last_hidden_state
        logprobs, *_ = linear_logprobs_of(
            hidden, head.module.weight, labels, bias=head.module.bias, rows=rows, softcap=head.softcap,
            logit_scale=head.logit_scale,
        )  # fmt: skip
    zeros = torch.zeros(count, dtype=torch.float32, device=device)
    return zeros.index_add(0, owner, logprobs), zeros.index_add(0, owner, (labels != -100).float())


def tokens_of(batch: Batch) -> Tensor:
    """Return how many trained tokens every example has, fp32 `[N]` on the CPU; no model is asked."""
    owners, trained = _owners(batch), batch.trained_labels != -100
    return torch.bincount(owners[trained], minlength=len(batch.examples)).float()


def head_disagrees(model: torch.nn.Module) -> str | None:
    """Return why log-probabilities are taken from all of the model's logits although its head looks like one that is
    known."""
    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.accelerate.lm_head import HeadDisagrees, find_head
    from nbtune.models.accelerate.lora_member import LeftAlone

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
    if batch.cu_seqlens is None or batch.idle_pass:
        return torch.from_numpy(rows // batch.input_ids.shape[1])
    documents = np.searchsorted(batch.cu_seqlens.numpy(), rows, side="right") - 1
    trained = batch.trained_labels.numpy() != -100
    documents_trained, owner = np.unique(
        documents[trained], return_inverse=True
    )  # padding is a document too, without labels
    if len(documents_trained) != len(batch.examples):
        raise TrainError("an answer has no tokens to learn from", fix="leave such rows out, or set `packing: false`")
    owners = np.zeros_like(rows)
    owners[trained] = owner
    return torch.from_numpy(owners)
