"""Byte-level tokenizers, quickly: ids by words seen before, and which tokens cover which characters by their bytes.

Such a tokenizer cuts text into words by a regular expression and encodes each word by itself. Words repeat, so cutting
them here and looking them up takes a quarter of the time of encoding the text; a new word is encoded by the tokenizer.
Only for ASCII text, for which the expression means the same to Python's `re` (checked on odd samples when it is made),
and only while words do repeat.

Each of its tokens stands for so many bytes of the text, so their running sum is where each ends. That costs no offsets,
which are nearly half of the time that encoding takes.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbtune.data.template.token_finder import finder_of

# ByteLevel's own expression, GPT-2's.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ASCII = {
    **{"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": "", "N": "0-9", "Nd": "0-9"},
    **{"P": r"!-#%-*,-/:;?@\[-\]_{}", "S": r"$+<->\^`|~"},
}
# What Oniguruma and Python write, or mean, differently.
_FOREIGN = re.compile(r"\[\[|&&|\{\d*,?\d*\}\+|\\P|\\p\{\^|\$|\(\?<|\\[zZAhHRKGX]")
_CAPACITY, _LONGEST = 300_000, 64


class Words:
    """Tokens of ASCII texts; `usable` is False where the tokenizer is of another kind, or words do not repeat.

    Args:
        backend: the tokenizer's Rust part, and `body`, its JSON.
    """

    def __init__(self, backend: Any, body: dict[str, Any] | None = None) -> None:
        self.usable = False
        body = body if body is not None else json.loads(backend.to_str())
        split = _first_split(body)
        if split is None:
            return
        pattern, rest = split
        self._find = re.compile(pattern, re.ASCII).findall
        added = [entry["content"] for entry in body["added_tokens"] if not entry["normalized"]]
        late = [entry["content"] for entry in body["added_tokens"] if entry["normalized"]]
        self._cut = finder_of(tuple(added), capture=True)
        self._late = finder_of(tuple(late))
        self._added = {e["content"]: np.int32(e["id"]).tobytes() for e in body["added_tokens"]}
        self._known = _Known(_encoder_of_words(body, rest))
        self._looked = 0
        self.usable = self._agrees(backend, [*added, *late])

    def ids(self, text: str) -> np.ndarray | None:
        """Return int32 [tokens], read-only; None where the tokenizer must do it. Characters that no word covers are
        left out: the caller compares the bytes."""
        if self._late is not None and self._late.search(text):
            return None
        pieces = self._cut.split(text) if self._cut is not None else [text]
        known, find, encoded = self._known, self._find, []
        for number, piece in enumerate(pieces):
            if number % 2:
                encoded.append(self._added[piece])
            elif piece:
                words = find(piece)
                self._looked += len(words)
                encoded.append(b"".join(map(known.__getitem__, words)))
        if self._looked > 100_000:
            self._take_stock()
        return np.frombuffer(b"".join(encoded), np.int32)

    def _take_stock(self) -> None:
        if self._known.new > self._looked * 0.4:
            self.usable = False
        if len(self._known) > _CAPACITY:
            self._known.clear()
        self._known.new = self._looked = 0

    def _agrees(self, backend: Any, added: list[str]) -> bool:
        rng = random.Random(0)
        odd = [chr(c) for c in range(128)] + [
            "\r\n",
            "\n\n",
            "  ",
            "'s",
            "'LL",
            "123456",
            "Ab",
            "aB",
            "x",
            " y",
            *added[:8],
        ]
        texts = ["".join(rng.choices(odd, k=rng.randint(1, 24))) for _ in range(200)]
        texts += [a + b for a in odd[9:14] + odd[27:48] for b in ("a", " ", "\n", "1", ".")]
        expected = backend.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, expected, strict=True):
            ours = self.ids(text)
            if ours is not None and ours.tolist() != encoding.ids:
                return False
        self._known.new = self._looked = 0
        return True


class _Known(dict):  # type: ignore[type-arg]
    """Words → their ids as bytes; a new word is encoded and kept."""

    def __init__(self, encode: Any) -> None:
        super().__init__()
        self._encode, self.new = encode, 0

    def __missing__(self, word: str) -> bytes:
        self.new += 1
        ids = np.array(self._encode(word), np.int32).tobytes()
        if len(word) <= _LONGEST:
            self[word] = ids
        return ids


def _first_split(body: dict[str, Any]) -> tuple[str, list[Any]] | None:
    """Return (the expression that cuts words, for ASCII; the steps after it); None for any other kind of tokenizer."""
    if body["model"].get("type") != "BPE" or body["model"].get("dropout"):
        return None
    if body.get("normalizer") not in (None, {"type": "NFC"}):
        return None
    if any(entry["single_word"] or entry["lstrip"] or entry["rstrip"] for entry in body["added_tokens"]):
        return None
    step = body.get("pre_tokenizer")
    steps = (step["pretokenizers"] if step["type"] == "Sequence" else [step]) if step else []
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    first = steps[0]
    if first["type"] == "ByteLevel" and first.get("use_regex", True):
        pattern, rest = _GPT2, [{**first, "use_regex": False}]
    elif first["type"] == "Split" and first["behavior"] == "Isolated" and not first["invert"]:
        pattern, rest = first["pattern"].get("Regex", ""), steps[1:]
    else:
        return None
    ascii_only = _for_ascii(pattern)
    return None if ascii_only is None else (ascii_only, rest)


def _for_ascii(pattern: str) -> str | None:
    """Return an Oniguruma expression as Python writes it, for ASCII text; None where they may differ."""
    if not pattern or _FOREIGN.search(pattern):
        return None
    parts, inside, at = [], False, 0
    while at < len(pattern):
        match = re.match(r"\\p\{(\w+)\}", pattern[at:])
        if match:
            if match[1] not in _ASCII:
                return None
            letters = _ASCII[match[1]]
            parts.append(letters if inside else f"[{letters}]" if letters else "(?!)")
            at += match.end()
            continue
        if pattern[at] == "\\":
            parts.append(pattern[at : at + 2])
            at += 2
            continue
        inside = pattern[at] != "]" if inside else pattern[at] == "["
        parts.append(pattern[at])
        at += 1
    text = "".join(parts)
    try:
        expression = re.compile(text, re.ASCII)
    except re.error:
        return None
    return text if expression.groups == 0 else re.sub(r"(?<!\\)\((?!\?)", "(?:", text)


def _encoder_of_words(body: dict[str, Any], rest: list[Any]) -> Any:
    """Return a function from a word to its ids: the tokenizer without its first step."""
    import tokenizers

    alone = {
        **body,
        "added_tokens": [],
        "normalizer": None,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    alone["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": rest}
    inner = tokenizers.Tokenizer.from_str(json.dumps(alone))
    return lambda word: inner.encode(word, add_special_tokens=False).ids


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
        """Return the places of a text's tokens (int32 [n]); None if they do not stand for exactly this text's bytes."""
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
