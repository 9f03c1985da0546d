"""Which tokens cover which characters.

Either the tokenizer says it (offsets), or, for byte-level tokenizers, the tokens themselves do: each stands for so many
bytes of the text, so their running sum is where each ends. That costs no offsets, which are nearly half of the time
that encoding takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


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


class BytePlaces:
    """Places by the bytes that tokens stand for; `sizes` int64 [tokens], bytes of the UTF-8 text per token."""

    def __init__(self, text: str, sizes: np.ndarray) -> None:
        self.text, self.sizes, self.ascii = text, sizes, text.isascii()

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """Return the tokens that cover characters start..end, half-open."""
        if start >= end:
            return 0, 0
        if not self.ascii:
            start, end = len(self.text[:start].encode()), len(self.text[:end].encode())
        first, last = np.searchsorted(np.cumsum(self.sizes), (start, end - 1), side="right")
        return int(first), int(last) + 1

    def characters(self, first: int, last: int) -> tuple[int, int]:
        """Return the characters that tokens first..last cover, half-open; those of which a part is covered, too."""
        ends = np.cumsum(self.sizes)
        start, end = (int(ends[at - 1]) if at else 0 for at in (first, last))
        if self.ascii:
            return start, end
        whole = self.text.encode()
        while end < len(whole) and whole[end] & 0xC0 == 0x80:  # a byte inside of a character
            end += 1
        return len(whole[:start].decode(errors="ignore")), len(whole[:end].decode())


def covered(texts: Sequence[str], sizes: np.ndarray, stretches: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """Return which tokens of ASCII texts lie in stretches of characters; bool [tokens of all texts].

    Args:
        sizes: int64, bytes per token, of all texts one after another.
        stretches: for each text (start, end) in characters, half-open.
    """
    bounds, at = [], 0
    for text, pairs in zip(texts, stretches, strict=True):
        for start, end in pairs:
            if start < end:
                bounds.append((at + start, at + end - 1))
        at += len(text)
    change = np.zeros(len(sizes) + 1, np.int32)
    if bounds:
        where = np.searchsorted(np.cumsum(sizes), np.asarray(bounds, np.int64), side="right")
        np.add.at(change, where[:, 0], 1)
        np.add.at(change, where[:, 1] + 1, -1)
    return np.cumsum(change[:-1]) > 0


class ByteLengths:
    """Bytes per token of a byte-level tokenizer; `usable` is False for any other.

    Args:
        body: the tokenizer's JSON.

    Attributes:
        table: int64 [ids].
        composes: the tokenizer normalises to NFC: only ASCII texts keep their bytes for sure.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        normalizer = body.get("normalizer")
        self.composes = normalizer is not None
        plain = normalizer is None or normalizer == {"type": "NFC"}
        self.usable = plain and body["model"].get("type") == "BPE" and _is_byte_level(body.get("pre_tokenizer"))
        if not self.usable:
            return
        alphabet = set(_alphabet())
        vocabulary: dict[str, int] = body["model"]["vocab"]
        added = {entry["id"]: entry["content"] for entry in body["added_tokens"]}
        self.table = np.zeros(max([*vocabulary.values(), *added], default=0) + 1, np.int64)
        for token, id_ in vocabulary.items():
            if id_ not in added:
                self.usable = self.usable and alphabet.issuperset(token)
                self.table[id_] = len(token)
        for id_, content in added.items():
            self.table[id_] = len(content.encode())

    def places(self, text: str, ids: np.ndarray) -> BytePlaces | None:
        """Return the places of a text's tokens; None if the tokens do not stand for exactly this text's bytes."""
        sizes = self.table[ids]
        size = len(text) if text.isascii() else len(text.encode())
        return BytePlaces(text, sizes) if len(ids) and int(sizes.sum()) == size else None


def _is_byte_level(step: Any) -> bool:
    """Return whether the last splitting step is ByteLevel without a space of its own, and none of the others drops
    text."""
    if not step:
        return False
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    *before, last = steps
    keeps = all(s["type"] == "Digits" or (s["type"] == "Split" and s["behavior"] != "Removed") for s in before)
    return keeps and last["type"] == "ByteLevel" and not last["add_prefix_space"]


def _alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()
