"""Where a tuned model's answers end, as token ids: what every generation after training has to stop at.

What ends a trained answer is what the tokenizer's chat template writes behind one (found out in
`nbtune.data.template.turns`), and of plain text the tokenizer's own end; the base's configuration knows neither where
the template is of one's own. The tokenizer is kept in the run's folder with the template it was trained by, so that a
run that was made long ago says its ends, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbtune.data.formats.messages import KEYS, Chat
from nbtune.data.template.chat_template import PLAIN_TEMPLATE, ChatTemplate, template_text
from nbtune.data.template.special_tokens import Controls
from nbtune.data.tokenize.encoder import Encoder
from nbtune.errors import DataError
from nbtune.spec import RunSpec

_ASKED, _THOUGHT, _SAID = "qzaskedzq", "qzthoughtzq", "qzsaidzq"


@dataclass(frozen=True)
class Ends:
    """What stops an answer, and what of it is nobody's text.

    Args:
        stops: ids, the tokenizer's own end first.
        hidden: ids of control tokens, the stops among them: they are shown to nobody as text.
    """

    stops: tuple[int, ...]
    hidden: frozenset[int]


def ends_of(tokenizer: Any) -> Ends:
    """Return what a tokenizer and its chat template say of the end of an answer.

    Args:
        tokenizer: a fast transformers tokenizer, with the template that was trained by.
    """
    own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if template_text(tokenizer) is None:
        return _ends(own, Controls(tokenizer))
    try:
        template = ChatTemplate(tokenizer)
    except DataError:  # nothing was trained by such a template, and nothing is known of it
        return _ends(own, Controls(tokenizer))
    ended = (template.controls.last_in(text) for text in (*template.turns.terminators, template.turns.calls_end))
    inside = _inside_an_answer(template)
    return _ends([*own, *(id_ for id_ in ended if id_ is not None and id_ not in inside)], template.controls)


def _ends(stops: Sequence[int], controls: Controls) -> Ends:
    return Ends(tuple(dict.fromkeys(stops)), frozenset({*controls.ids.values(), *stops}))


def _inside_an_answer(template: ChatTemplate) -> set[int]:
    """Return what ends a message but no answer: gpt-oss ends a thought as it ends a question, and then goes on."""
    thinking = dict.fromkeys(KEYS, _THOUGHT)
    messages = [template.turns.message("user", _ASKED), template.turns.message("assistant", _SAID) | thinking]
    try:
        text = template.render(messages).text
    except DataError:
        return set()
    between = text.rpartition(_SAID)[0].rpartition(_THOUGHT)
    return template.controls.all_in(between[2]) if between[1] else set()


def trained_end(tokenizer: Any, spec: RunSpec) -> int | None:
    """Return the token that ends an answer and is trained, as an answer of a word is prepared; None: none is trained.

    Args:
        tokenizer: with the template that is trained by; without one chats get a plain one.
        spec: of the run.

    Raises:
        DataError: such a chat cannot be rendered.
    """
    template = ChatTemplate(tokenizer, None if template_text(tokenizer) else PLAIN_TEMPLATE)
    chat = Chat([template.turns.message("user", _ASKED), template.turns.message("assistant", _SAID)])
    (encoded,) = Encoder.of_spec(tokenizer, template, spec).encode([chat])
    if isinstance(encoded, DataError):
        raise encoded
    ids, trained = encoded
    last = [int(id_) for id_, learnt in zip(ids, trained, strict=True) if learnt][-1:]
    controls = {*template.controls.ids.values(), tokenizer.eos_token_id}
    return last[0] if last and last[0] in controls else None


def end_ids(own: int | Sequence[int] | None, tokenizer: Any) -> list[int]:
    """Return what a model's own configuration stops at (its `eos_token_id`), and what the
    tokenizer's answers end with."""
    return list(dict.fromkeys([*_as_list(own), *ends_of(tokenizer).stops]))


def with_ends(generation: Mapping[str, Any] | None, config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any] | None:
    """Return a model's generation_config.json with what its answers end with after training; None: it has all of that.

    Args:
        generation: the base's own; None: it has none, and transformers takes the ids from `config`.
        config: the base's config.json.
        tokenizer: with the template that was trained by.
    """
    if generation is None:
        text = config.get("text_config") or {}
        kept_ids = {key: config.get(key, text.get(key)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        generation = {key: value for key, value in kept_ids.items() if value is not None}
    own = _as_list(generation.get("eos_token_id"))
    ends = end_ids(own, tokenizer)
    if set(ends) == set(own):
        return None
    # a configuration that says so of itself is made anew from the model's, without these ends
    return {key: value for key, value in generation.items() if key != "_from_model_config"} | {"eos_token_id": ends}


def _as_list(ids: int | Sequence[int] | None) -> list[int]:
    return [ids] if isinstance(ids, int) else [int(number) for number in ids or ()]
