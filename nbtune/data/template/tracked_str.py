"""Text that remembers where its characters come from.

A chat template mixes its own words with those of the data. `Tracked` is a `str` whose methods keep, for every stretch
of characters that came from the data, the number of the message it came from; so one rendering gives the text, the
place of every message in it, and which characters are data, whatever the template does with them (strip, split,
slice, join, macros). What a method cannot keep exactly is kept as a whole: too much counts as data, never too little.

Spans are `(start, end, tag)`: tag ≥ 0 is a message's number (with a bit for what part of the message it is: `SAID`,
`CALLS`, `THOUGHT`), `OTHER` other data (tools, documents), `MARK` a stretch inside ``{% generation %}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

OTHER, MARK = -1, -2
SAID, CALLS, THOUGHT = 1 << 24, 1 << 25, 1 << 26
OPEN, CLOSE = "<think>", "</think>"
NUMBER = SAID - 1  # the bits of a tag that are a message's number
Span = tuple[int, int, int]


class Tracked(str):
    """A string with spans; every operation gives what `str` would, and keeps the spans."""

    __slots__ = ("_spans",)
    _spans: tuple[Span, ...]

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        text = str.__new__(Tracked, str.__add__(self, other))
        if type(other) is Tracked:
            size = len(self)
            text._spans = self._spans + tuple([(s + size, e + size, t) for s, e, t in other._spans])
        else:
            text._spans = self._spans
        return text

    def __radd__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        text, size = str.__new__(Tracked, str.__add__(other, self)), len(other)
        text._spans = spans_of(other) + tuple([(s + size, e + size, t) for s, e, t in self._spans])
        return text

    def __mul__(self, count: SupportsIndex) -> str:
        return concat([self] * int(count))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return _whole(str.__mod__(self, values), self)

    def __iter__(self) -> Iterator[str]:
        return (self._cut(i, i + 1) for i in range(len(self)))

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._cut(start, stop) if step == 1 else _whole(str.__getitem__(self, key), self)
        str.__getitem__(self, key)  # raises IndexError
        at = key if key >= 0 else key + len(self)
        return self._cut(at, at + 1)

    def _cut(self, start: int, stop: int) -> str:
        text = str.__getitem__(self, slice(start, stop))
        if not text:
            return ""
        spans = self._spans
        if len(spans) == 1 and spans[0][0] <= start and spans[0][1] >= stop:
            return _make(text, ((0, len(text), spans[0][2]),))
        kept = [(max(s, start) - start, min(e, stop) - start, t) for s, e, t in spans if s < stop and e > start]
        return _make(text, tuple(kept)) if kept else text

    def strip(self, chars: str | None = None, /) -> str:
        start = len(self) - len(str.lstrip(self, chars))
        return self._cut(start, start + len(str.strip(self, chars)))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self._cut(len(prefix), len(self)) if prefix and self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self._cut(0, len(self) - len(suffix)) if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._locate(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._locate(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        kept = str.splitlines(self, True)
        pieces, at = [], 0
        for line, shown in zip(kept, str.splitlines(self, keepends), strict=True):
            pieces.append(self._cut(at, at + len(shown)))
            at += len(line)
        return pieces

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        at = self.find(sep)
        if at < 0:
            return self, "", ""
        return self._cut(0, at), self._cut(at, at + len(sep)), self._cut(at + len(sep), len(self))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        at = self.rfind(sep)
        if at < 0:
            return "", "", self
        return self._cut(0, at), self._cut(at, at + len(sep)), self._cut(at + len(sep), len(self))

    def _locate(self, texts: list[str], sep: str | None) -> list[str]:
        pieces, at = [], 0
        for piece in texts:
            if sep is None:
                at = self.index(piece, at)
            pieces.append(self._cut(at, at + len(piece)))
            at += len(piece) + (len(sep) if sep is not None else 0)
        return pieces

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old or old not in self:
            return self if old else _whole(str.replace(self, old, new, count), self)
        pieces: list[str] = []
        at, left = 0, int(count)
        while left != 0 and (position := self.find(old, at)) >= 0:
            pieces += (self._cut(at, position), _like(new, self._cut(position, position + len(old))))
            at, left = position + len(old), left - 1
        return concat([*pieces, self._cut(at, len(self))])

    def join(self, parts: Iterable[str], /) -> str:
        pieces: list[str] = []
        for part in parts:
            pieces += (self, part) if pieces else (part,)
        return concat(pieces)


def size(value: Any) -> int:
    """Return the bytes of a text, or of a list without what stands in it; 0 for all else."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    return 8 * len(value) if isinstance(value, list | tuple | dict) else 0


def _make(text: str, spans: tuple[Span, ...]) -> Tracked:
    tracked = str.__new__(Tracked, text)
    tracked._spans = spans
    return tracked


def plain(text: str) -> str:
    """Return the characters alone, as an ordinary `str`."""
    return str.__getitem__(text, slice(None))


def track(text: str, tag: int) -> str:
    """Return `text`, marked as data of message `tag`."""
    return _make(text, ((0, len(text), tag),)) if text else text


def spans_of(text: str) -> tuple[Span, ...]:
    """Return the spans of a text; of a plain `str`, none."""
    return text._spans if type(text) is Tracked else ()


def concat(parts: Iterable[str]) -> str:
    """Return `"".join(parts)` with the spans of the parts."""
    if type(parts) is not list and type(parts) is not tuple:
        parts = list(parts)
    spans: list[Span] = []
    at = 0
    for part in parts:
        if type(part) is Tracked:
            if at:
                for s, e, t in part._spans:
                    spans.append((s + at, e + at, t))
            else:
                spans.extend(part._spans)
        at += len(part)
    text = "".join(parts)
    if not spans:
        return text
    tracked = str.__new__(Tracked, text)
    tracked._spans = tuple(spans)
    return tracked


def mark(text: str) -> str:
    """Return `text` with a `MARK` over all of it."""
    return _make(text, (*spans_of(text), (0, len(text), MARK))) if text else text


def _tag(text: str) -> int | None:
    tags = {t for _, _, t in spans_of(text) if t != MARK}
    return joint(tags) if tags else None


def joint(tags: set[int]) -> int:
    """Return the tag of what is made of pieces with these tags."""
    if len(tags) == 1:
        return next(iter(tags))
    if min(tags) < 0 or len({tag & NUMBER for tag in tags}) > 1:
        return OTHER
    made = 0
    for tag in tags:
        made |= tag
    return made


def joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that touch as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and joined[-1][1] >= start:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


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


def _whole(text: str, *origins: str) -> str:
    """Return `text`, all of it data if any of its origins holds data."""
    for origin in origins:
        tag = _tag(origin)
        if tag is not None and text:
            return _make(text, ((0, len(text), tag),))
    return text


def _like(text: str, origin: str) -> str:
    return text if type(text) is Tracked else _whole(text, origin)


def _keep_whole(name: str) -> Any:
    original = getattr(str, name)

    def method(self: Tracked, *args: Any, **kwargs: Any) -> Any:
        return _whole(original(self, *args, **kwargs), self)

    method.__name__ = name
    method.__doc__ = original.__doc__
    return method


def _keep_aligned(name: str) -> Any:
    original = getattr(str, name)

    def method(self: Tracked) -> Any:
        text = original(self)
        return _make(text, self._spans) if len(text) == len(self) else _whole(text, self)

    method.__name__ = name
    method.__doc__ = original.__doc__
    return method


for _name in ("lower", "upper", "title", "capitalize", "swapcase", "casefold"):
    setattr(Tracked, _name, _keep_aligned(_name))
for _name in ("center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"):
    setattr(Tracked, _name, _keep_whole(_name))


def thought_in(text: str) -> tuple[int, int] | None:
    """Return where the first thought of an answer stands; one that a prompt has opened begins with the text."""
    end = text.find(CLOSE)
    if end < 0:
        return None
    start = text.rfind(OPEN, 0, end)
    return (0 if start < 0 else start + len(OPEN)), end
