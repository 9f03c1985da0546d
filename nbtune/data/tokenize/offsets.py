"""Which tokens cover which characters, as a tokenizer's offsets say: of tokenizers that are not byte-level."""

from __future__ import annotations

from typing import Any


class OffsetPlaces:
    """Places by `char_to_token` and `token_to_chars` of an encoding."""

    def __init__(self, encoding: Any, count: int) -> None:
        self.encoding, self.count = encoding, count

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """Return the tokens that cover characters start..end, half-open."""
        first = last = None
        for position in range(start, end):
            first = self.encoding.char_to_token(position)
            if first is not None:
                break
        if first is None:
            return 0, 0
        for position in range(end - 1, start - 1, -1):
            last = self.encoding.char_to_token(position)
            if last is not None:
                break
        last = first if last is None else last
        while last + 1 < self.count:  # a character of several tokens ends with the last of them
            chars = self.encoding.token_to_chars(last + 1)
            if chars is None or chars[0] >= end or chars[1] <= chars[0]:
                break
            last += 1
        return first, last + 1

    def characters(self, first: int, last: int) -> tuple[int, int]:
        """Return the characters that tokens first..last cover, half-open."""
        covered = [chars for i in range(first, last) if (chars := self.encoding.token_to_chars(i)) is not None]
        covered = [(start, end) for start, end in covered if start < end]
        return (covered[0][0], max(end for _, end in covered)) if covered else (0, 0)


class Offsets:
    """`char_to_token` and `token_to_chars` of plain offsets, (start, end) a token."""

    def __init__(self, offsets: list[tuple[int, int]]) -> None:
        self.offsets = offsets

    def char_to_token(self, position: int) -> int | None:
        return next((i for i, (s, e) in enumerate(self.offsets) if s <= position < e), None)

    def token_to_chars(self, index: int) -> tuple[int, int]:
        return self.offsets[index]
