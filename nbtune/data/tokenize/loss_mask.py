"""Which characters of a conversation are trained: roles, single messages, stretches of them, and the ends of turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbtune.data.template.chat_template import Rendered
from nbtune.errors import DataError

__all__ = ["asked_for", "wanted"]

Stretch = tuple[int, int]


def wanted(
    rendered: Rendered,
    messages: Sequence[Mapping[str, Any]],
    *,
    train_on: str | Sequence[str] = "answers",
    terminators: str = "turn",
    ends: Sequence[str] = (),
) -> list[Stretch]:
    """The trained stretches of a rendering, (start, end) in characters.

    Args:
        messages: as rendered; `train`, `training`, `weight` and `train_detail` of each are heeded.
        train_on: `answers`, `last_answer`, `all`, or roles.
        terminators: whose ends are trained: `turn` those of trained answers, `all` of every message, `last` of the last
            trained answer, `none`.
        ends: what ends a turn.

    Raises:
        DataError: a `train_detail` does not fit.
    """
    if train_on == "all":
        return [(0, len(rendered.text))]
    kept = [span for span in rendered.trained if span[2] < 0 or _is_trained(messages[span[2]])]
    roles = () if isinstance(train_on, str) else train_on
    if roles and "assistant" not in roles:
        kept = []
    others = {i for i, m in enumerate(messages) if m["role"] != "assistant" and asked_for(m, roles)}
    if others:
        kept = sorted({*kept, *_of_others(rendered, others, ends)})
    kept = kept[-1:] if train_on == "last_answer" else kept
    found: list[Stretch] = []
    for number, (start, end, tag) in enumerate(kept):
        if terminators == "none" or (terminators == "last" and number < len(kept) - 1):
            end = _before_end(rendered.text, start, end, ends)
        details = messages[tag].get("train_detail") if tag >= 0 else None
        found += _without(start, end, _untrained(rendered, messages[tag], tag, details)) if details else [(start, end)]
    if terminators == "all":
        found = sorted({*found, *_other_ends(rendered, ends)})
    return [stretch for stretch in found if stretch[0] < stretch[1]]


def _of_others(rendered: Rendered, numbers: set[int], ends: Sequence[str]) -> list[tuple[int, int, int]]:
    """What those messages say, each with the end of its turn if there is one."""
    found = []
    for number in numbers:
        own = [(start, end) for start, end, tag in rendered.spans if tag == number]
        if own:
            following = min((s for s, _, tag in rendered.spans if s >= own[-1][1] and tag != number), default=None)
            limit = len(rendered.text) if following is None else following
            stops = [at + len(t) for t in ends if t and (at := rendered.text.find(t, own[-1][1], limit)) >= 0]
            found.append((own[0][0], min(stops, default=own[-1][1]), number))
    return found


def _before_end(text: str, start: int, end: int, ends: Sequence[str]) -> int:
    return next((end - len(t) for t in ends if t and text.endswith(t, start, end)), end)


def _other_ends(rendered: Rendered, ends: Sequence[str]) -> list[Stretch]:
    """The first end of a turn behind the text of each message, wherever there is one before the next text."""
    found = []
    for number, (_, after, tag) in enumerate(rendered.spans):
        following = rendered.spans[number + 1] if number + 1 < len(rendered.spans) else None
        if following is not None and following[2] == tag:
            continue
        limit = following[0] if following is not None else len(rendered.text)
        places = [(at, at + len(t)) for t in ends if t and (at := rendered.text.find(t, after, limit)) >= 0]
        if places:
            found.append(min(places))
    return found


def _untrained(rendered: Rendered, message: Mapping[str, Any], tag: int, details: Any) -> list[Stretch]:
    """The stretches of the text that a message's `train_detail` leaves out: a list of {begin_offset, end_offset
    (inclusive), train}, counted in the characters of its content."""
    content = message.get("content")
    pieces = [(s, e) for s, e, t in rendered.spans if t == tag]
    found = []
    for detail in details:
        begin, end = (detail.get(key) if isinstance(detail, dict) else None for key in ("begin_offset", "end_offset"))
        if not isinstance(content, str) or not isinstance(begin, int) or not isinstance(end, int):
            raise DataError("`train_detail` needs begin_offset and end_offset", fix="count characters of the content")
        if not 0 <= begin <= end < len(content):
            raise DataError(f"`train_detail` {begin}..{end} lies outside of the content", fix="count from 0")
        if detail.get("train", True):
            continue
        where = next(((s, content.find(rendered.text[s:e])) for s, e in pieces if rendered.text[s:e] in content), None)
        if where is None:
            raise DataError("the template rewrites a message that has `train_detail`", fix="leave it out")
        shift = where[0] - where[1]
        found.append((begin + shift, end + 1 + shift))
    return sorted(found)


def _without(start: int, end: int, holes: Sequence[Stretch]) -> list[Stretch]:
    """start..end without the holes."""
    kept = []
    for low, high in holes:
        if low > start:
            kept.append((start, min(low, end)))
        start = max(start, high)
    return [*kept, (start, end)] if start < end else kept


def asked_for(message: Mapping[str, Any], roles: Sequence[str]) -> bool:
    """Whether a message is of a role to train, or says of itself that it is to be trained."""
    return bool(message.get("train", message.get("training", message["role"] in roles)))


def _is_trained(message: Mapping[str, Any]) -> bool:
    for key in ("train", "training"):
        if key in message:
            return bool(message[key])
    weight = message.get("weight")
    return weight is None or bool(weight)
