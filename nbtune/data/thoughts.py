"""Thoughts of answers: kept where they stand, split off for the template to place, or dropped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["KEYS", "told_apart"]

KEYS = ("reasoning_content", "thinking", "reasoning")
_BLOCK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def told_apart(messages: Sequence[dict[str, Any]], policy: str) -> list[dict[str, Any]]:
    """The messages, with the thoughts of answers split off (`policy` split) or without them (drop)."""
    return [_apart(m, policy) if m["role"] == "assistant" else m for m in messages]


def _apart(message: dict[str, Any], policy: str) -> dict[str, Any]:
    content = message.get("content")
    block = _BLOCK.match(content) if isinstance(content, str) else None
    if policy == "drop":
        kept = {key: value for key, value in message.items() if key not in KEYS}
        return {**kept, "content": content[block.end() :]} if block and content is not None else kept
    if block is None or content is None or any(message.get(key) for key in KEYS):
        return message
    return {**message, "content": content[block.end() :], "reasoning_content": block[1].strip("\n")}
