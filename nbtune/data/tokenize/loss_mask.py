"""Which characters of a conversation are trained: roles, single messages, stretches of them, and the ends of turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbtune.data.formats.messages import KEYS
from nbtune.data.formats.values import CHOICES, flag, is_missing, own_choice
from nbtune.data.template.chat_template import Rendered
from nbtune.errors import DataError

Stretch = tuple[int, int]


def trained_stretches(
    rendered: Rendered,
    messages: Sequence[Mapping[str, Any]],
    *,
    train_on: str | Sequence[str] = "answers",
    terminators: str = "turn",
    ends: Sequence[str] = (),
) -> list[Stretch]:
    """Return the trained stretches of a rendering, (start, end) in characters.

    Args:
        messages: as rendered; `train`, `training`, `weight` and `train_detail` of each are heeded.
        train_on: `answers`, `last_answer`, `all`, or roles (none: what says of itself that it is trained).
        terminators: whose ends are trained: `turn` those of trained answers, `all` of every message, `last` of the last
            trained answer, `none`.
        ends: what ends a turn.

    Raises:
        DataError: a `train_detail` does not fit.
    """
    if train_on == "all":
        return [(0, len(rendered.text))]
    roles = ("assistant",) if isinstance(train_on, str) else train_on
    heard = {i for i, message in enumerate(messages) if is_trained(message, roles)}
    kept = [span for span in rendered.trained if span[2] in heard or (span[2] < 0 and "assistant" in roles)]
    others = {i for i in heard if messages[i]["role"] != "assistant"}
    if others:
        kept = sorted({*kept, *_of_others(rendered, others, ends)})
    kept = kept[-1:] if train_on == "last_answer" else kept
    stretches: list[Stretch] = []
    for number, (start, end, tag) in enumerate(kept):
        if terminators == "none" or (terminators == "last" and number < len(kept) - 1):
            end = _before_end(rendered.text, start, end, ends)
        if tag < 0 or not _details(messages[tag]):
            stretches.append((start, end))
        elif _as_a_whole(messages[tag], roles):
            stretches += _without(start, end, _chosen(rendered, messages[tag], tag, train=False))
        else:
            stretches += _only(rendered, messages[tag], tag, end)
    if terminators == "all":
        stretches = sorted({*stretches, *_other_ends(rendered, ends)})
    return [stretch for stretch in stretches if stretch[0] < stretch[1]]


def _of_others(rendered: Rendered, numbers: set[int], ends: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return what those messages say, each with the end of its turn if there is one."""
    stretches = []
    for number in numbers:
        own = [(start, end) for start, end, tag in rendered.spans if tag == number]
        if own:
            following = min((s for s, _, tag in rendered.spans if s >= own[-1][1] and tag != number), default=None)
            limit = len(rendered.text) if following is None else following
            stops = [at + len(t) for t in ends if t and (at := rendered.text.find(t, own[-1][1], limit)) >= 0]
            stretches.append((own[0][0], min(stops, default=own[-1][1]), number))
    return stretches


def _before_end(text: str, start: int, end: int, ends: Sequence[str]) -> int:
    return next((end - len(t) for t in ends if t and text.endswith(t, start, end)), end)


def _other_ends(rendered: Rendered, ends: Sequence[str]) -> list[Stretch]:
    """Return the first end of a turn behind the text of each message, wherever there is one before the next text."""
    stretches = []
    for number, (_, after, tag) in enumerate(rendered.spans):
        following = rendered.spans[number + 1] if number + 1 < len(rendered.spans) else None
        if following is not None and following[2] == tag:
            continue
        limit = following[0] if following is not None else len(rendered.text)
        places = [(at, at + len(t)) for t in ends if t and (at := rendered.text.find(t, after, limit)) >= 0]
        if places:
            stretches.append(min(places))
    return stretches


def _details(message: Mapping[str, Any]) -> list[Any]:
    """Return what is said of single stretches of a message, and of its thoughts."""
    return [*(message.get("train_detail") or ()), *(message.get("thought_detail") or ())]


def _chosen(rendered: Rendered, message: Mapping[str, Any], tag: int, *, train: bool) -> list[Stretch]:
    """Return the stretches of the text that a message's `train_detail` trains, or leaves out: a list of {begin_offset,
    end_offset (inclusive), train}, counted in the characters of its content; and those of its thoughts."""
    stretches = []
    if message.get("train_detail"):
        stretches += _of_details(rendered, message.get("content"), message["train_detail"], tag, train)
    if message.get("thought_detail"):
        thought = next(message[key] for key in KEYS if message.get(key))
        if any(rendered.text[start:end] in thought for start, end, t in rendered.spans if t == tag):  # it is shown
            stretches += _of_details(rendered, thought, message["thought_detail"], tag, train)
    return sorted(stretches)


def _of_details(rendered: Rendered, content: Any, details: Sequence[Any], tag: int, train: bool) -> list[Stretch]:
    ranges = []
    for detail in details:
        begin, end = (detail.get(key) if isinstance(detail, dict) else None for key in ("begin_offset", "end_offset"))
        if not isinstance(content, str) or not isinstance(begin, int) or not isinstance(end, int):
            raise DataError("`train_detail` needs begin_offset and end_offset", fix="count characters of the content")
        if not 0 <= begin <= end < len(content):
            raise DataError(f"`train_detail` {begin}..{end} lies outside of the content", fix="count from 0")
        if _says(detail) == train:
            ranges.append((begin, end + 1))
    return _places(rendered, content, tag, ranges) if isinstance(content, str) and ranges else []


def _says(detail: Any) -> bool:
    value = detail.get("train") if isinstance(detail, Mapping) else None
    return is_missing(value) or flag(value, "`train` in `train_detail`")


def _places(rendered: Rendered, content: str, tag: int, ranges: Sequence[Stretch]) -> list[Stretch]:
    """Return where ranges of a message's content stand in the text; what the template left out stands nowhere."""
    pieces: list[tuple[int, int, int]] = []  # where in the text, where in the content, how long
    foreign = False
    for start, end in sorted(((s, e) for s, e, t in rendered.spans if t == tag), key=lambda span: span[0] - span[1]):
        at, size = content.find(rendered.text[start:end]), end - start
        while at >= 0 and any(at < low + n and low < at + size for _, low, n in pieces):
            at = content.find(rendered.text[start:end], at + 1)
        foreign = foreign or at < 0
        if at >= 0:
            pieces.append((start, at, size))
    stretches = []
    for low, high in ranges:
        pieces_within = [(max(low, at), min(high, at + size), start - at) for start, at, size in pieces]
        pieces_within = [(begin, end, shift) for begin, end, shift in pieces_within if begin < end]
        left = list(content[low:high])
        for begin, end, _ in pieces_within:
            left[begin - low : end - low] = " " * (end - begin)
        if "".join(left).strip() and (foreign or not pieces):
            raise DataError("the template rewrites a message that has `train_detail`", fix="leave it out")
        stretches += [(begin + shift, end + shift) for begin, end, shift in pieces_within]
    return sorted(stretches)


def _only(rendered: Rendered, message: Mapping[str, Any], tag: int, end: int) -> list[Stretch]:
    """Return what a message that is not trained as a whole has of trained parts; the end of its turn if its last part
    is."""
    stretches = _chosen(rendered, message, tag, train=True)
    last = max((detail["end_offset"] for detail in message.get("train_detail") or () if _says(detail)), default=-1)
    if stretches and last + 1 >= len((message["content"] or "").rstrip()) > 0:
        stretches[-1] = stretches[-1][0], max(stretches[-1][1], end)
    return stretches


def _without(start: int, end: int, holes: Sequence[Stretch]) -> list[Stretch]:
    """Return start..end without the holes."""
    kept = []
    for low, high in holes:
        if low > start:
            kept.append((start, min(low, end)))
        start = max(start, high)
    return [*kept, (start, end)] if start < end else kept


def is_trained(message: Mapping[str, Any], roles: Sequence[str]) -> bool:
    """Return whether a message is of a role to train, or says of itself or of a part that it is to be trained."""
    if len(message) == 2 and "content" in message:  # a role and what it says: nearly all messages
        return message["role"] in roles
    if _as_a_whole(message, roles):
        return True
    return any(_says(detail) for detail in _details(message) if isinstance(detail, Mapping))


def _as_a_whole(message: Mapping[str, Any], roles: Sequence[str]) -> bool:
    choice = None if message.keys().isdisjoint(CHOICES) else own_choice(message, "a message")
    return message["role"] in roles if choice is None else choice
