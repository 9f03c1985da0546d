"""Which tokens a head that is not trained cannot tell from one: all that a base never learnt have nearly one row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbtune.models.accelerate.detect import causal_lm

if TYPE_CHECKING:
    from torch import nn

_NEAR = 0.02  # of a row's size: rows that were learnt differ by tenths at least
_AT_ONCE = 4096  # rows


def taken_for(model: nn.Module, token: int) -> list[int]:
    """Return the other tokens whose rows of the head are nearly a token's own; none where rows are trained, or lie
    where they cannot be compared (parted among processes, rounded).

    >>> from nbtune.models.head_rows import taken_for
    >>> fp32, adapter = nbtune.device.torch_dtype("fp32"), nbtune.spec.AdapterSpec(r=4)
    >>> built = nbtune.models.build("nbtune/tiny", adapter=adapter, dtype=fp32, device="cpu")
    >>> taken_for(built.model, built.tokenizer.eos_token_id)
    []
    """
    import torch

    lm: Any = causal_lm(model)
    head, embedding = lm.get_output_embeddings(), lm.get_input_embeddings()
    weight: Any = getattr(head, "weight", None)
    plain = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.is_floating_point() and not weight.is_meta
    if not plain or weight.ndim != 2 or token >= len(weight):
        return []
    ends = [head, *([embedding] if getattr(embedding, "weight", None) is weight else [])]
    if any(parameter.requires_grad for end in ends for parameter in end.parameters()):
        return []
    with torch.no_grad():
        own = weight[token].float()
        parts = [(part.float() - own).norm(dim=1) for part in weight.split(_AT_ONCE)]
        near = (torch.cat(parts) <= _NEAR * own.norm()).nonzero()[:, 0].tolist()
    return [other for other in near if other != token]


def never_learnt(model: nn.Module, tokenizer: Any, ends: list[int]) -> list[str]:
    """Return a sentence for each token that ends trained answers, and that the model can hardly say.

    Args:
        ends: such tokens, of those that rows teach.
    """
    said = []
    for token in ends:
        others = taken_for(model, token)
        if not others:
            continue
        name, first = (str(tokenizer.convert_ids_to_tokens(number)) for number in (token, others[0]))
        many = f"that of {first}" if len(others) == 1 else f"that of {len(others):,} others ({first}, …)"
        said.append(
            f"answers end with {name}, which the base never learnt: its row of the head is {many} and is not trained, "
            "so that answers may go on: take a template whose end the base knows, or write "
            f"`adapter: {{trainable_token_indices: [{token}]}}` where the head is the embedding, "
            "`adapter: {modules_to_save: [lm_head]}` where it is not"
        )
    return said
