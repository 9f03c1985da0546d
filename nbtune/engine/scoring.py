"""What a trained reward model or classifier says of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtune.models import Built

_AT_ONCE = 16


def tag(built: Built, texts: Sequence[Sequence[str]]) -> list[list[dict[str, float]]]:
    """Return of each word of each text its labels' probabilities.

    Args:
        built: a model with a head of words, and its tokenizer.
        texts: each a list of words.
    """
    import torch

    from nbtune.data.formats.tagged_format import written
    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.heads import head_of

    found, inner = head_of(built.model), decoder(causal_lm(built.model))
    assert found is not None, "the model has no head"
    assert inner is not None, "a head is put only onto a model that tells its last hidden state"
    assert built.tokenizer is not None
    training, told = built.model.training, []
    built.model.eval()
    try:
        with torch.no_grad():
            for words in texts:
                text, breaks = written(list(words))
                tokens: Any = built.tokenizer(text, return_offsets_mapping=True)
                ends = [end for _, end in tokens["offset_mapping"]]
                places = [next(k for k, end in enumerate(ends) if end > at) for at in breaks]
                ids = torch.tensor([tokens["input_ids"]], device=next(built.model.parameters()).device)
                hidden = inner(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state[0, places]
                told.append(found[1](hidden.float()).softmax(-1).tolist())
    finally:
        built.model.train(training)
    return [[dict(zip(found[0].labels, word, strict=True)) for word in words] for words in told]


def score(built: Built, texts: Sequence[str | Sequence[dict[str, Any]]]) -> list[dict[str, float]]:
    """Return of each text its outputs by name: a reward as it is, of several labels their probabilities.

    Args:
        built: a model with a head of texts, and its tokenizer.
        texts: each a text, or messages, which are rendered by the chat template.
    """
    import torch

    from nbtune.models.heads import head_of

    found = head_of(built.model)
    assert found is not None, "the model has no head"
    training, told = built.model.training, []
    built.model.eval()
    try:
        with torch.no_grad():
            for first in range(0, len(texts), _AT_ONCE):
                outputs = _scores(built, texts[first : first + _AT_ONCE], found[1])
                told += (outputs if outputs.shape[1] == 1 else outputs.softmax(-1)).tolist()
    finally:
        built.model.train(training)
    return [dict(zip(found[0].labels, each, strict=True)) for each in told]


def _scores(built: Built, texts: Sequence[Any], head: Any) -> Any:
    import torch

    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.heads import read_at

    tokenizer: Any = built.tokenizer
    rows = [
        tokenizer(text).input_ids
        if isinstance(text, str)
        else tokenizer.apply_chat_template(list(text), tokenize=True, return_dict=True)["input_ids"]
        for text in texts
    ]
    wide, device = max(map(len, rows)), next(built.model.parameters()).device
    ids = torch.tensor([row + [0] * (wide - len(row)) for row in rows], device=device)
    ends = torch.tensor([wide * k + len(row) - 1 for k, row in enumerate(rows)], device=device)
    inner: Any = decoder(causal_lm(built.model))  # padded on the right, which nothing before it sees
    hidden = inner(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
    return head(hidden.flatten(0, 1)[read_at(built.model, ids.flatten(), ends)].float())
