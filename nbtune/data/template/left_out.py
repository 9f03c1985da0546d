"""What a chat template leaves out of a conversation: messages, calls, thoughts, text beside them, tools.

Found on the rendering itself: each part of a message is marked with what it is, and a part none of whose characters are
in the text was left out, whatever the reason (a role that the template does not know, no support for tools, thoughts of
earlier turns).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nbtune.data.template.tracked_str import CALLS, NUMBER, OTHER, SAID, THOUGHT, Span, concat, track

REASONING = ("reasoning_content", "thinking", "reasoning")
_BESIDES = frozenset(("tool_calls", *REASONING))
_OPEN, _CLOSE = "<think>", "</think>"
_SURE = 16  # characters of a message that are hardly in a text by chance


def marked(text: str, number: int, *, calls: bool) -> str:
    """Return an answer's text with a mark over its thought (inside ``<think>``) and one over what else it says;
    `calls`: the answer calls tools besides."""
    thought = _thought(text)
    if thought is None:
        return track(text, number | SAID if calls else number)
    start, end = thought
    head = max(0, start - len(_OPEN))
    tail = end + len(_CLOSE)
    pieces = (
        track(text[:head], number | SAID),
        track(text[head:start], number),
        track(text[start:end], number | THOUGHT),
        track(text[end:tail], number),
        track(text[tail:], number | SAID),
    )
    return concat(pieces)


def _thought(text: str) -> tuple[int, int] | None:
    """Return where the first thought of an answer stands; one that a prompt has opened begins with the text."""
    end = text.find(_CLOSE)
    if end < 0:
        return None
    start = text.rfind(_OPEN, 0, end)
    return (0 if start < 0 else start + len(_OPEN)), end


def left_out(
    messages: Sequence[Mapping[str, Any]], tools: Any, text: str, spans: Iterable[Span]
) -> Iterator[tuple[int, str]]:
    """Yield the (number, what) of each part that is not in the text: `message`, `calls`, `thoughts`, `words`; (-1,
    `tools`) where the row's tools are not shown.

    Args:
        messages: what was rendered.
        tools: the row's.
        text: the rendering.
        spans: of it, with their marks.
    """
    shown: dict[int, int] = {}
    for tag in {tag for _, _, tag in spans}:
        number = tag & NUMBER if tag >= 0 else tag
        shown[number] = shown.get(number, 0) | (tag & ~NUMBER if tag >= 0 else 0)
    if tools and OTHER not in shown:
        yield OTHER, "tools"
    for number, message in enumerate(messages):
        kinds = shown.get(number)
        if kinds is None:
            if _says_something(message) and not _is_in(message, text):
                only_calls = message.get("tool_calls") and not _says_something({**message, "tool_calls": None})
                yield number, "calls" if only_calls else "message"
        elif message["role"] == "assistant" and not _is_plain(message):
            yield from ((number, what) for what in _parts_without(message, kinds))


def _is_plain(message: Mapping[str, Any]) -> bool:
    """Tell whether it is one text and nothing else: nearly all messages are."""
    content = message.get("content")
    return isinstance(content, str) and _CLOSE not in content and message.keys().isdisjoint(_BESIDES)


def _parts_without(message: Mapping[str, Any], kinds: int) -> Iterator[str]:
    content, calls = message.get("content"), message.get("tool_calls")
    if calls and not kinds & CALLS:
        yield "calls"
    texts = _texts(content)
    inside = [(part, _thought(part)) for part in texts]
    thoughts = [message[key] for key in REASONING if isinstance(message.get(key), str)]
    thoughts += [part[where[0] : where[1]] for part, where in inside if where]
    if any(thought.strip() for thought in thoughts) and not kinds & THOUGHT:
        yield "thoughts"
    words = [part[: max(0, w[0] - len(_OPEN))] + part[w[1] + len(_CLOSE) :] if w else part for part, w in inside]
    is_marked = calls or any(where for _, where in inside)
    if is_marked and any(word.strip() for word in words) and not kinds & SAID:
        yield "words"


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list | tuple) else ()
    return [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]


def _says_something(message: Mapping[str, Any]) -> bool:
    thoughts = (message[key] for key in REASONING if isinstance(message.get(key), str))
    return bool(message.get("tool_calls")) or any(text.strip() for text in (*_texts(message.get("content")), *thoughts))


def _is_in(message: Mapping[str, Any], text: str) -> bool:
    """Return whether its text is there all the same, built in a way that cannot be followed."""
    return any(len(part.strip()) >= _SURE and part.strip() in text for part in _texts(message.get("content")))


def without_kinds(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Return the spans of data in order, with plain numbers of messages; what belongs to one and
    touches is one span."""
    if all(tag <= NUMBER for _, _, tag in spans):
        return tuple(sorted(spans))
    joined: list[Span] = []
    for start, end, tag in sorted(spans):
        number = tag & NUMBER if tag >= 0 else tag
        if joined and joined[-1][2] == number and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end, number
        else:
            joined.append((start, end, number))
    return tuple(joined)
