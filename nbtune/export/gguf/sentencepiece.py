"""Whether llama.cpp's SentencePiece merging gives a BPE tokenizer's own tokens.

llama.cpp keeps one score a token and joins the two neighbours whose union scores best; a BPE tokenizer has an order of
merges, and two merges may make the same token. For tokenizers made by SentencePiece both agree; for others it is tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAMPLES = (
    "Hello, how are you today?",
    "The quick brown fox jumps over the lazy dog; it's 12:45, isn't it?",
    "def main(argv):\n    return [x ** 2 for x in range(10)]",
    "internationalisation, misunderstanding and uncharacteristically",
    "Größe, café, naïve, Ελλάδα, привет, こんにちは",
    "  two  spaces,\ttabs and\n\nlines",
    "<b>http://example.org/a?b=c&d=e</b>",
    "ababababab aaaaaaaaaa abcabcabc the there then these",
)


def merged(text: str, scores: Mapping[str, float]) -> list[str]:
    """Cut `text` (with "▁" for spaces) into tokens: the best-scored neighbours joined first, the left one of equals."""
    parts = list(text)
    while True:
        best, at = float("-inf"), -1
        for i in range(len(parts) - 1):
            score = scores.get(parts[i] + parts[i + 1])
            if score is not None and score > best:
                best, at = score, i
        if at < 0:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def first_difference(tokenizer: Any, scores: Mapping[str, float], prefix: bool) -> str | None:
    """Return the first sample that llama.cpp would cut otherwise than `tokenizer` (of transformers), or None."""
    vocabulary = tokenizer.get_vocab()
    for sample in SAMPLES:
        marked = ("▁" if prefix else "") + sample.replace(" ", "▁")
        expected: list[int] = []
        for part in merged(marked, scores):
            if part in vocabulary:
                expected.append(vocabulary[part])
            else:
                expected += [vocabulary.get(f"<0x{byte:02X}>", -1) for byte in part.encode("utf-8")]
        if expected != tokenizer(sample, add_special_tokens=False)["input_ids"]:
            return sample
    return None
