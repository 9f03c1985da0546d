"""What a trained head says of texts or of judged tokens, as the losses of `nbtune.methods` take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nbtune.device.streams import send
from nbtune.methods import Answers, Method
from nbtune.train.inputs import model_inputs

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch


def scores_of(model: torch.nn.Module, batch: Batch, method: Method, *, device: torch.device) -> Answers:
    """Return the scores of a batch's texts, or of its judged tokens, in fp32.

    Args:
        model: with a head (`nbtune.models.heads.add_head`).
        batch: padded rows, or packs, of rows that judge.
    """
    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.heads import head_of, read_at

    inner: Any = decoder(causal_lm(model))
    found = head_of(model)
    assert inner is not None, "a head is put only onto a model that tells its last hidden state"
    assert found is not None, "the model has no head"
    places, values, weights = (None if one is None else send(one, device) for one in judged(batch, method))
    inputs = model_inputs(batch, device, fused=True, labels=False)
    if method.head == "text":
        places = read_at(model, inputs["input_ids"].flatten(), places)
    hidden = inner(**inputs, use_cache=False, return_dict=True).last_hidden_state.flatten(0, 1)
    scores = found[1](hidden[places].float())
    nothing = torch.zeros(len(scores), device=device)
    return Answers(nothing, nothing + 1, values=values, weights=weights, scores=scores)


def judged(batch: Batch, method: Method) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return where a batch's scores are asked (flat positions, int64 `[N]`), what was judged there, and how often each
    counts; on the CPU."""
    assert batch.ends is not None, "rows that judge nothing"
    if method.head == "text":
        return batch.ends, batch.values, batch.example_weights
    values = batch.token_values.flatten()
    places = torch.nonzero(~values.isnan())[:, 0]
    if batch.example_weights is None:
        return places, values[places], None
    order = torch.argsort(batch.ends)
    owner = torch.searchsorted(batch.ends[order].contiguous(), places)
    return places, values[places], batch.example_weights[order][owner]
