"""ASCII text as tokens, word by word, by a dictionary of words seen before.

A byte-level tokenizer cuts text into words by a regular expression and encodes each word by itself. Words repeat, so
cutting them here and looking them up takes a quarter of the time of encoding the text; a new word is encoded by the
tokenizer. Only for ASCII text, for which the expression means the same to Python's `re` (checked on odd samples when
it is made), and only while words do repeat.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np

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
        self._cut = _alternatives(added, capture=True)
        self._late = _alternatives(late)
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
        known, find, found = self._known, self._find, []
        for number, piece in enumerate(pieces):
            if number % 2:
                found.append(self._added[piece])
            elif piece:
                words = find(piece)
                self._looked += len(words)
                found.append(b"".join(map(known.__getitem__, words)))
        if self._looked > 100_000:
            self._take_stock()
        return np.frombuffer(b"".join(found), np.int32)

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


def _alternatives(tokens: list[str], capture: bool = False) -> re.Pattern[str] | None:
    if not tokens:
        return None
    either = "|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True))
    return re.compile(f"({either})" if capture else either)


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
