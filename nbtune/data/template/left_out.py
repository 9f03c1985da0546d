"""What a chat template leaves out of a conversation: messages, calls, thoughts, text beside them, a part of any, tools.

It is found on the rendering: each part of a message is marked with what it is, and a part of which characters are not
in the text was left out, whatever the reason (a role that the template does not know, no support for tools, thoughts of
earlier turns, the first of several calls alone).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nbtune.data.template.tracked_str import CALLS, CLOSE, NUMBER, OPEN, OTHER, SAID, THOUGHT, Span, thought_in

REASONING = ("reasoning_content", "thinking", "reasoning")
# What a message says to a model, or of its own training, beside its content: named where nothing reads it.
_MEANT = frozenset(
    (
        *("thought", "thoughts", "reasoning_details", "tools", "functions", "documents", "citations", "prefix"),
        *("image", "images", "video", "videos", "audio", "audios", "refusal"),
        *("loss", "mask", "masked", "loss_mask", "trainable", "learn", "label"),
    )
)
_BESIDES = frozenset(("tool_calls", *REASONING))
_SURE = 16  # characters of a message that are hardly in a text by chance


def left_out(
    messages: Sequence[Mapping[str, Any]], tools: Any, text: str, spans: Iterable[Span], template: str = ""
) -> Iterator[tuple[int, str]]:
    """Yield the (number, what) of each part that is not in the text: `message`, `calls`, `thoughts`, `words`, `parts`
    (some of one of these); `key …` for what stands beside a message's content; (-1, `tools`) where the row's tools are
    not shown.

    Args:
        messages: what was rendered.
        tools: the row's.
        text: the rendering.
        spans: of it, with their marks.
        template: what it was rendered by; what it names it may have used.
    """
    spans = list(spans)
    shown: dict[int, int] = {}
    for tag in {tag for _, _, tag in spans}:
        number = tag & NUMBER if tag >= 0 else tag
        shown[number] = shown.get(number, 0) | (tag & ~NUMBER if tag >= 0 else 0)
    if tools and OTHER not in shown:
        yield OTHER, "tools"
    sizes: Counter[int] = Counter()
    for start, end, tag in spans:
        sizes[tag] += end - start
    for number, message in enumerate(messages):
        kinds = shown.get(number)
        if kinds is None:
            if _says_something(message) and not _is_in(message, text):
                only_calls = message.get("tool_calls") and not _says_something({**message, "tool_calls": None})
                yield number, "calls" if only_calls else "message"
            continue
        lost: list[str] = []
        if message["role"] == "assistant" and not _is_plain(message):
            lost += _parts_without(message, kinds)
        if "calls" not in lost and _lacks_calls(message, number, text, spans):
            lost.append("calls")
        if not {"words", "thoughts"} & {*lost} and _is_cut(message, number, text, spans, sizes):
            lost.append("parts")
        if len(message) > 2:
            lost += [f"key {key}" for key in message if key in _MEANT and _holds(message[key]) and key not in template]
            lost += ["key name"] if _is_unnamed(message, text) else []
        yield from ((number, what) for what in lost)


def _is_unnamed(message: Mapping[str, Any], text: str) -> bool:
    """Return whether a message says who speaks, and the text does not; a tool's name stands in its call."""
    name = message.get("name")
    return isinstance(name, str) and bool(name.strip()) and message["role"] != "tool" and name not in text


def _is_plain(message: Mapping[str, Any]) -> bool:
    """Tell whether it is one text and nothing else: nearly all messages are."""
    content = message.get("content")
    return isinstance(content, str) and CLOSE not in content and message.keys().isdisjoint(_BESIDES)


def _parts_without(message: Mapping[str, Any], kinds: int) -> Iterator[str]:
    content, calls = message.get("content"), message.get("tool_calls")
    if calls and not kinds & CALLS:
        yield "calls"
    texts = _texts(content)
    thoughts = [message[key] for key in REASONING if isinstance(message.get(key), str)]
    thoughts += [part[where[0] : where[1]] for part in texts if (where := thought_in(part))]
    if any(thought.strip() for thought in thoughts) and not kinds & THOUGHT:
        yield "thoughts"
    is_marked = calls or any(thought_in(part) for part in texts)
    if is_marked and any(word.strip() for word in _words(texts)) and not kinds & SAID:
        yield "words"


def _words(texts: Sequence[str]) -> list[str]:
    """Return texts without the thought of each."""
    found = [(part, thought_in(part)) for part in texts]
    return [part[: max(0, w[0] - len(OPEN))] + part[w[1] + len(CLOSE) :] if w else part for part, w in found]


def _lacks_calls(message: Mapping[str, Any], number: int, text: str, spans: Iterable[Span]) -> bool:
    """Return whether one of several calls is not in the text: each is there by its name."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple) or len(calls) < 2:
        return False
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    names = Counter(str(one.get("name")) for one in functions if isinstance(one, Mapping) and one.get("name"))
    there = "\0".join(text[start:end] for start, end, tag in spans if tag == number | CALLS)
    return any(len(re.findall(rf"(?<!\w){re.escape(name)}(?!\w)", there)) < count for name, count in names.items())


def _is_cut(
    message: Mapping[str, Any], number: int, text: str, spans: Sequence[Span], sizes: Mapping[int, int]
) -> bool:
    """Return whether some of what a message says, thoughts apart, is not in the text."""
    content = message.get("content")
    texts, tags = [part for part in _texts(content) if part], {number}
    if message["role"] == "assistant" and (message.get("tool_calls") or any(CLOSE in part for part in texts)):
        texts, tags = _words(texts), {number | SAID} if isinstance(content, str) else {number, number | SAID}
    if sum(sizes[tag] for tag in tags) >= sum(len(part.strip()) for part in texts):
        return False
    if all(part.strip() in text for part in texts):
        return False
    there = sum(_written(text[start:end]) for start, end, tag in spans if tag in tags)
    return there < sum(map(_written, texts))


def _written(text: str) -> int:
    """Return how many characters are no blanks."""
    return len("".join(text.split()))


def _holds(value: Any) -> bool:
    return value is not None and not (isinstance(value, str | list | tuple | Mapping) and not value)


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
