"""A conversation that is too long, as several that are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nbtune.data.formats.messages import Chat
from nbtune.data.tokenize.encoder import Encoder
from nbtune.errors import DataError


def split_chat(encoder: Encoder, chat: Chat, max_len: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the chat's turns in order, as many together as fit into `max_len` tokens, each part with the system prompt
    and rendered as a conversation of its own; a question with its answer that does not fit alone is cut on the right.

    Returns:
        ids (int32 [n]) and trained (bool [n]) of each part in which something is trained.
    """
    system = [m for m in chat.messages[:1] if m["role"] in ("system", "developer")]
    turns: list[list[dict[str, Any]]] = []
    for message in chat.messages[len(system) :]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)

    def encoded(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        part = replace(chat, messages=[*system, *(m for turn in turns[first:last] for m in turn)])
        made = encoder.encode([part])[0]
        if isinstance(made, DataError):
            raise made
        return made

    parts, first = [], 0
    while first < len(turns):
        last, kept = first + 1, encoded(first, first + 1)
        while last < len(turns) and len((longer := encoded(first, last + 1))[0]) <= max_len:
            last, kept = last + 1, longer
        ids, trained = kept[0][:max_len], kept[1][:max_len]
        if trained[1:].any():
            parts.append((ids, trained))
        first = last
    return parts
