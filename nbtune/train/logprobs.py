"""What a model says of answers: their log-probabilities, as the losses of `nbtune.methods` take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nbtune.device.streams import send
from nbtune.errors import TrainError
from nbtune.methods import Answers, Method
from nbtune.train.inputs import model_inputs
from nbtune.train.kept_reference import KeptReference
from nbtune.train.reference import StartingWeights, in_place_of
from nbtune.train.shared_prompts import laid_out, shared_tokens

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch

HOST = torch.device("cpu")
_LOGITS, _FEWEST = 2**27, 256  # bytes of logits at once on a GPU, and the fewest rows that keep it busy


@dataclass(frozen=True)
class Asking:
    """How a run asks for answers.

    Args:
        start: what the run started with, for the reference; None: with the base.
        share: what the two answers of a pair begin with goes through the model once, where it is much: the model can
            (`nbtune.train.shared_prompts.can_share`).
        kept: what the reference has said; None: it is asked each time.
    """

    start: StartingWeights | None = None
    share: bool = False
    kept: KeptReference | None = None


def answers_of(
    model: torch.nn.Module,
    batch: Batch,
    method: Method,
    *,
    device: torch.device,
    asking: Asking | None = None,
    mismatched: Answers | None = None,
    step: Answers | None = None,
) -> Answers:
    """Return all that a method wants to know of a batch's answers.

    Args:
        model: with an adapter, unless the method needs no reference.
        batch: pairs side by side (better, worse, better, …), or answers with their `values`.
        device: where the model is.
        asking: how; None: as it comes.
        mismatched, step: as in `Answers`, asked before.
    Raises:
        TrainError: the method wants a reference, and the model has no adapter to do without.
    """
    asking = asking or Asking()
    asked = question(batch, device, share=asking.share)
    known = asking.kept.of(batch) if asking.kept is not None and method.reference else None
    if known is not None and known.values is not None:
        asked["answers.reference"] = known.values
    found = answers_to(model, asked, method, asking.start)
    if asking.kept is not None and known is not None and known.values is None and found.reference is not None:
        asking.kept.keep(known, found.reference)
    return replace(found, mismatched=mismatched, step=step)


def answers_to(
    model: torch.nn.Module, asked: Mapping[str, Any], method: Method, start: StartingWeights | None
) -> Answers:
    """Return what a model, and the reference, say to a `question`; arguments as of `answers_of`. What the reference
    says may be known: ``answers.reference``."""
    # the reference first: weights may change places for it, and what a forward keeps for its backward is not there yet
    reference = asked.get("answers.reference")
    if method.reference and reference is None:
        with torch.no_grad(), in_place_of(model, start):
            reference = score(model, asked)[0]
    logprobs, tokens = score(model, asked)
    values = None if method.pairwise else asked.get("answers.values")
    return Answers(logprobs, tokens, reference, values, asked.get("answers.weights"))


def score_answers(model: torch.nn.Module, batch: Batch, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return summed log-probability and number of the trained tokens of every example, fp32 `[N]` each.

    Args:
        model: a causal language model, accelerated or not, with an adapter or not.
        batch: padded rows, or packs.
    """
    return score(model, question(batch, device))


def question(batch: Batch, device: torch.device, *, share: bool = False) -> dict[str, Any]:
    """Return a batch as `score` takes it, on the device: arguments of the model's forward, and beside them, called
    ``answers.…``, which of what it says is wanted, and what was judged.

    Args:
        share: see `Asking`.
    """
    wanted = {"rows": batch.trained_rows, "labels": batch.trained_labels, "owners": _owners(batch)}
    wanted |= {"values": batch.values, "weights": batch.example_weights}
    inputs = model_inputs(batch, HOST, fused=True, labels=False)
    if share and (once := laid_out(batch, inputs)) is not None:
        inputs = once
    inputs = {f"answers.{name}": t for name, t in wanted.items() if t is not None} | inputs
    sent = {name: send(value, device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return {**sent, "answers.count": len(batch.examples)}


def score(model: torch.nn.Module, asked: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what `score_answers` does, of a `question`: nothing here waits for the device, or looks at the host."""
    from nbtune_kernels import linear_logprobs_of

    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.accelerate.lm_head import find_head, has_head

    lm: Any = causal_lm(model)
    inner, (rows, labels, owner) = decoder(lm), (asked[f"answers.{name}"] for name in ("rows", "labels", "owners"))
    inputs = {name: value for name, value in asked.items() if "." not in name}
    if inner is None or not has_head(lm):
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[rows].float()
        logprobs = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels != -100)
    else:
        head = find_head(lm)
        shared = shared_tokens(asked)
        inputs |= {} if shared is None else {"shared_tokens": shared}
        hidden = inner(**inputs, use_cache=False, return_dict=True).last_hidden_state
        logprobs, *_ = linear_logprobs_of(
            hidden, head.module.weight, labels, bias=head.module.bias, rows=rows, softcap=head.softcap,
            logit_scale=head.logit_scale, chunk=_rows_at_once(head.module.weight),
        )  # fmt: skip
    zeros = torch.zeros(asked["answers.count"], dtype=torch.float32, device=labels.device)
    return zeros.index_add(0, owner, logprobs), zeros.index_add(0, owner, (labels != -100).float())


def _rows_at_once(weight: Tensor) -> int:
    """Return of how many rows there are logits at once: few, as all that layers keep is there beside them; 0: as the
    kernels have it."""
    return max(_FEWEST, _LOGITS // (weight.shape[0] * weight.element_size())) if weight.is_cuda else 0


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
