"""The tokenizer that TRL's trainers are given: prompts become the tokens that they are for nbtune.

A trainer writes a prompt by the chat template and tokenises what it gets, so that words of the data that look like a
control token become one; and it knows no tools but its own. Prompts that hold either are looked up instead.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nbtune.data.formats.messages import Chat
from nbtune.data.tokenize.prompts import differs, prompt_ids
from nbtune.errors import DataError

Message = Mapping[str, Any]


def for_trainer(tokenizer: Any, asked: Iterable[Chat]) -> Any:
    """Return a tokenizer for a trainer that asks these prompts: the same one, where it makes of all of them what nbtune
    does.

    Args:
        tokenizer: a fast transformers tokenizer with a chat template; it stays as it is.
        asked: what the rows ask.
    Raises:
        DataError: two rows ask the same with other tools.
    """
    known: dict[str, list[int]] = {}
    with_tools: dict[str, Any] = {}
    for chat in asked:
        key = _key(chat.messages)
        if with_tools.setdefault(key, chat.tools) != chat.tools:
            raise DataError("two rows ask the same with other tools", place="data", fix="let their prompts differ")
        if key not in known and differs(tokenizer, chat.messages, chat.tools):
            known[key] = prompt_ids(tokenizer, chat.messages, chat.tools)
    return _looking_up(tokenizer, known) if known else tokenizer


def _key(messages: Sequence[Message]) -> str:
    """Return what tells prompts apart, also when a table has filled the keys of single messages with None."""
    return json.dumps(_filled(messages), sort_keys=True, default=str)


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _filled(inner) for key, inner in value.items() if inner is not None}
    return [_filled(inner) for inner in value] if isinstance(value, list | tuple) else value


def _looking_up(tokenizer: Any, known: Mapping[str, list[int]]) -> Any:
    kind = type(tokenizer)

    class Known(kind):  # type: ignore[misc,valid-type]
        def apply_chat_template(self, conversation: Any, *args: Any, **how: Any) -> Any:
            several = bool(conversation) and not isinstance(conversation[0], Mapping)
            if not (several and how.get("tokenize", True) and how.get("return_dict", True)):
                return super().apply_chat_template(conversation, *args, **how)
            own = [known.get(_key(messages)) for messages in conversation]
            rest = [messages for messages, ids in zip(conversation, own, strict=True) if ids is None]
            made = super().apply_chat_template(rest, *args, **how) if rest else {"input_ids": [], "attention_mask": []}
            others = zip(made["input_ids"], made["attention_mask"], strict=True)
            both = [next(others) if ids is None else (ids, [1] * len(ids)) for ids in own]
            return {"input_ids": [ids for ids, _ in both], "attention_mask": [mask for _, mask in both]}

    Known.__name__, Known.__qualname__ = kind.__name__, kind.__qualname__  # by which it is saved
    made = copy.copy(tokenizer)
    made.__class__ = Known
    return made
