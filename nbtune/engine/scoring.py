"""What a trained reward model or classifier says of texts, which are read as the rows of its run were: what looks like
a control token in them stays text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nbtune.data.formats.messages import Chat, messages_of
from nbtune.data.formats.reader import Parts
from nbtune.data.formats.tagged_format import lines
from nbtune.data.prepare.pieces import Piece, Whole
from nbtune.data.template.chat_template import PLAIN_TEMPLATE, ChatTemplate, template_text
from nbtune.data.tokenize.encoder import Encoder
from nbtune.errors import DataError

if TYPE_CHECKING:
    from nbtune.models import Built

_AT_ONCE = 16


class Reading:
    """Texts and conversations as the tokens that rows of a run become.

    Args:
        tokenizer: the run's, with the chat template that it was trained by.
        thinking: of its spec.
    """

    def __init__(self, tokenizer: Any, thinking: str = "keep") -> None:
        self._tokenizer, self._thinking = tokenizer, thinking

    def ids(self, text: str | Sequence[dict[str, Any]]) -> list[int]:
        """Return the tokens of a text, or of messages, which are rendered by the chat template.

        Raises:
            DataError: there is nothing in it, or the template refuses it.
        """
        if isinstance(text, str):
            ids, _ = _encoded(self._of_texts, Parts(((text, True),), ends=False))
        else:
            ids, _ = _encoded(self._of_chats, messages_of(list(text), "messages"))
        if not len(ids):
            raise DataError("the text is empty", fix="leave it out: there is nothing to score")
        return [int(number) for number in ids]

    def of_words(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the tokens of a list of words, and at which of them each word is judged.

        Raises:
            DataError: a word is empty, or two are one token.
        """
        row = Parts(tuple(lines(list(words), "words")), ends=False)
        piece = Piece(0, row, steps=(0.0,) * len(words))
        numbers, trained = _encoded(self._of_texts, row)
        whole = Whole.of(numbers, trained, piece)
        if isinstance(whole, DataError):
            raise whole
        assert whole.judged is not None
        places = [place for place, judged in enumerate(whole.judged) if judged == 0]
        return [int(number) for number in whole.ids], places

    @cached_property
    def _of_texts(self) -> Encoder:
        return Encoder(self._tokenizer, None)

    @cached_property
    def _of_chats(self) -> Encoder:
        mine = None if template_text(self._tokenizer) else PLAIN_TEMPLATE
        return Encoder(self._tokenizer, ChatTemplate(self._tokenizer, mine), thinking=self._thinking)


def _encoded(encoder: Encoder, row: Chat | Parts) -> Any:
    (found,) = encoder.encode([row])
    if isinstance(found, DataError):
        raise found
    return found


def tag(built: Built, texts: Sequence[Sequence[str]]) -> list[list[dict[str, float]]]:
    """Return of each word of each text its labels' probabilities.

    Args:
        built: a model with a head of words, and its tokenizer.
        texts: each a list of words.
    """
    import torch

    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.heads import head_of

    found, inner = head_of(built.model), decoder(causal_lm(built.model))
    assert found is not None, "the model has no head"
    assert inner is not None, "a head is put only onto a model that tells its last hidden state"
    training, told, reading = built.model.training, [], Reading(built.tokenizer)
    built.model.eval()
    try:
        with torch.no_grad():
            for words in texts:
                numbers, places = reading.of_words(words)
                ids = torch.tensor([numbers], device=next(built.model.parameters()).device)
                hidden = inner(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state[0, places]
                told.append(found[1](hidden.float()).softmax(-1).tolist())
    finally:
        built.model.train(training)
    return [[dict(zip(found[0].labels, word, strict=True)) for word in words] for words in told]


def score(
    built: Built, texts: Sequence[str | Sequence[dict[str, Any]]], reading: Reading | None = None
) -> list[dict[str, float]]:
    """Return of each text its outputs by name: a reward as it is, of several labels their probabilities.

    Args:
        built: a model with a head of texts, and its tokenizer.
        texts: each a text, or messages, which are rendered by the chat template.
        reading: as the run's rows were read; None: by its tokenizer.
    """
    import torch

    from nbtune.models.heads import head_of

    found = head_of(built.model)
    assert found is not None, "the model has no head"
    training, told, reading = built.model.training, [], reading or Reading(built.tokenizer)
    built.model.eval()
    try:
        with torch.no_grad():
            for first in range(0, len(texts), _AT_ONCE):
                outputs = _scores(built, list(map(reading.ids, texts[first : first + _AT_ONCE])), found[1])
                told += (outputs if outputs.shape[1] == 1 else outputs.softmax(-1)).tolist()
    finally:
        built.model.train(training)
    return [dict(zip(found[0].labels, each, strict=True)) for each in told]


def _scores(built: Built, rows: Sequence[list[int]], head: Any) -> Any:
    import torch

    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.heads import read_at

    wide, device = max(map(len, rows)), next(built.model.parameters()).device
    ids = torch.tensor([row + [0] * (wide - len(row)) for row in rows], device=device)
    ends = torch.tensor([wide * k + len(row) - 1 for k, row in enumerate(rows)], device=device)
    inner: Any = decoder(causal_lm(built.model))  # padded on the right, which nothing before it sees
    hidden = inner(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
    return head(hidden.flatten(0, 1)[read_at(built.model, ids.flatten(), ends)].float())
