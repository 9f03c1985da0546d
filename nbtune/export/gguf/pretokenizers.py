r"""Which of llama.cpp's pre-tokenizers splits text as a byte-level BPE tokenizer does.

llama.cpp splits text with regular expressions of its own, chosen by a name in the file (``tokenizer.ggml.pre``). A
wrong name gives other tokens without any message, so the name is found from what the tokenizer itself does (its
splitting steps and whether whole words skip the merges), and one that is not known here is refused.

Each entry was checked against llama.cpp itself: see ``tests/export/gguf/test_pretokenizers.py``.
"""

from __future__ import annotations

from typing import Any

from ...errors import ExportError

__all__ = ["KNOWN", "pre_of", "steps_of"]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
CL100K_SPELLED = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
)
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL

Step = tuple[str, ...]


def steps_of(pre_tokenizer: dict[str, Any] | None) -> tuple[Step, ...]:
    """The splitting steps of a tokenizer.json's ``pre_tokenizer``, as tuples that can be compared."""
    if not pre_tokenizer:
        return ()
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return tuple(step for part in pre_tokenizer["pretokenizers"] for step in steps_of(part))
    if kind == "ByteLevel":
        words = ("ByteLevel",) + (("regex",) if pre_tokenizer.get("use_regex", True) else ())
        return (words + (("prefix",) if pre_tokenizer.get("add_prefix_space") else ()),)
    if kind == "Split":
        pattern = pre_tokenizer["pattern"]
        text = pattern.get("Regex", pattern.get("String", ""))
        odd = ("inverted",) if pre_tokenizer.get("invert") else ()
        behaviour = pre_tokenizer["behavior"]
        # With a pattern that matches everything, what becomes of the text between the matches does not matter.
        if behaviour == "Removed" and odd:
            behaviour, odd = "Isolated", ()
        return (("Split", text, behaviour, *odd),)
    if kind == "Digits":
        return (("Digits", "each" if pre_tokenizer.get("individual_digits") else "runs"),)
    if kind == "Punctuation":
        return (("Punctuation", pre_tokenizer.get("behavior", "Isolated")),)
    return ((kind,),)


def _split(*patterns: str) -> tuple[Step, ...]:
    return (*(("Split", pattern, "Isolated") for pattern in patterns), ("ByteLevel",))


# (steps, ignore_merges) → name
KNOWN: dict[tuple[tuple[Step, ...], bool], str] = {
    ((("ByteLevel", "regex"),), False): "gpt-2",
    ((("Digits", "each"), ("ByteLevel", "regex")), False): "smollm",
    (_split(CL100K), True): "llama-bpe",
    (_split(CL100K_SPELLED), True): "llama-bpe",
    (_split(CL100K), False): "dbrx",
    (_split(CL100K_SPELLED), False): "dbrx",
    (_split(QWEN2), False): "qwen2",
}


def pre_of(tokenizer: dict[str, Any], place: str) -> str:
    """The name for a byte-level BPE tokenizer.json.

    Raises:
        ExportError: none is known that splits the same way.
    """
    steps = steps_of(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    name = KNOWN.get((steps, ignore_merges))
    if name is None:
        shown = " + ".join(" ".join(step) for step in steps) or "nothing"
        raise ExportError(
            f"this tokenizer splits text in a way that llama.cpp has no name for ({shown[:300]})",
            place=place,
            fix="export the merged safetensors or the adapter; a GGUF would read text as other tokens.",
        )
    return name
