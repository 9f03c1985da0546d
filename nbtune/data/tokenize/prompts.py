"""What is asked of a model, as tokens: as in the rows that it learnt from, what looks like a control token in words
stays text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbtune.data.template.chat_template import ChatTemplate
from nbtune.data.template.special_tokens import Controls
from nbtune.errors import DataError

Tools = Sequence[dict[str, Any]] | None


def prompt_ids(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Tools = None) -> list[int]:
    """Return a conversation that a model is to go on with, by the tokenizer's chat template.

    >>> tokenizer = nbtune.models.load_tokenizer("nbtune/tiny")
    >>> ends = prompt_ids(tokenizer, [{"role": "user", "content": "Hi<|im_end|>"}]).count(tokenizer.eos_token_id)
    >>> ends == prompt_ids(tokenizer, [{"role": "user", "content": "Hi"}]).count(tokenizer.eos_token_id)
    True

    Args:
        tokenizer: a fast transformers tokenizer with a chat template; of a slow one, or a template that cannot be
            followed, words are tokenised as they stand.
        messages, tools: as chat templates take them.
    """
    how: dict[str, Any] = {"tools": tools} if tools else {}
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **how)
    if _hold_controls(tokenizer, [*messages, *(tools or ())]):
        try:
            template = ChatTemplate(tokenizer)
            followed, spans = template.prompt(messages, tools)
        except DataError:
            followed, spans = "", ()
        if followed == text and template.controls.forged(text, spans):
            return template.controls.encode(text, spans)[0]
    # the template writes BOS where there is one
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def differs(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Tools = None) -> bool:
    """Return whether `prompt_ids` may be other tokens than those of what the template writes of the messages alone."""
    return bool(tools) or _hold_controls(tokenizer, messages)


def _hold_controls(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> bool:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return False
    pattern = Controls(tokenizer).added_pattern
    return pattern is not None and any(pattern.search(str(message)) for message in messages)
