r"""Which of llama.cpp's pre-tokenizers splits text as a byte-level BPE tokenizer does.

llama.cpp splits text with regular expressions of its own, chosen by a name in the file (``tokenizer.ggml.pre``). A
wrong name gives other tokens without any message, so the name is found from what the tokenizer itself does (its
splitting steps and whether whole words skip the merges), and one that is not known here is refused.

Each entry was checked against llama.cpp itself: see ``tests/export/gguf/test_pretokenizers.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbtune.errors import ExportError
from nbtune.models.gguf_file.header import refused

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
CL100K_SPELLED = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
)
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL

QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
O200K = rf"{_LEAD}{_UPPER}*{_LOWER}+{_SHORT}|{_LEAD}{_UPPER}+{_LOWER}*{_SHORT}|" r"\p{N}{1,3}|" + _SLASH
TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|" r"\p{N}|" + _SLASH
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+")

# As llama.cpp itself splits, where that is not quite what those tokenizers do: its letters are of two cases in ASCII
# only, it takes every space for one, and to it Falcon's runs of punctuation are one step.
_UP, _LOW = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_SHORT_SPELLED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
O200K_SPELLED = rf"{_LEAD}{_UP}*{_LOW}+{_SHORT_SPELLED}|{_LEAD}{_UP}+{_LOW}*{_SHORT_SPELLED}|" r"\p{N}{1,3}|" + _SLASH
TEKKEN_SPELLED = rf"{_LEAD}{_UP}*{_LOW}+|{_LEAD}{_UP}+{_LOW}*|" r"\p{N}|" + _SLASH
DEEPSEEK_CODER_SPELLED = (*DEEPSEEK_CODER[:-1], r"(?:(?!\s)[一-龥ࠀ-一가-퟿])+")
FALCON_SPELLED = r"[\p{P}$+<=>^~|`]+"
SEED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
JAIS2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    + "|".join(rf"\s{{{many}}}(?!\S)" for many in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    + r"|\s{1}"
)
EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)

Step = tuple[str, ...]


def steps_of(pre_tokenizer: dict[str, Any] | None) -> tuple[Step, ...]:
    """Return the splitting steps of a tokenizer.json's ``pre_tokenizer``, as tuples that can be compared."""
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


_EACH, _RUNS, _BYTES = ("Digits", "each"), ("Digits", "runs"), ("ByteLevel",)
_WITH_REGEX = ("ByteLevel", "regex")

# (steps, ignore_merges) → name
KNOWN: dict[tuple[tuple[Step, ...], bool], str] = {
    ((_WITH_REGEX,), False): "gpt-2",
    ((_EACH, _WITH_REGEX), False): "smollm",
    (_split(CL100K), True): "llama-bpe",
    (_split(CL100K_SPELLED), True): "llama-bpe",
    (_split(CL100K), False): "dbrx",
    (_split(CL100K_SPELLED), False): "dbrx",
    (_split(QWEN2), False): "qwen2",
    (_split(QWEN35), False): "qwen35",
    (_split(*DEEPSEEK_V3), False): "deepseek-v3",
    (_split(BLOOM), False): "bloom",
    (_split(O200K), False): "gpt-4o",
    (_split(TEKKEN), False): "tekken",
    (_split(TEKKEN), True): "tekken",
    ((*_split(*DEEPSEEK_CODER)[:-1], _EACH, _BYTES), False): "deepseek-coder",
    ((("Punctuation", "Contiguous"), _WITH_REGEX, _RUNS, ("Split", "[0-9][0-9][0-9]", "Isolated")), False): "falcon",
    (_split(SEED), False): "seed-coder",
    (_split(JAIS2), False): "jais-2",
    (_split(EXAONE_MOE), False): "exaone-moe",
}
# By which a file of that name is read, and exported again.
EXACT: dict[tuple[tuple[Step, ...], bool], str] = {
    (_split(O200K_SPELLED), False): "gpt-4o",
    (_split(TEKKEN_SPELLED), True): "tekken",
    ((*_split(*DEEPSEEK_CODER_SPELLED)[:-1], _EACH, _BYTES), False): "deepseek-coder",
    ((("Split", FALCON_SPELLED, "Isolated"), _WITH_REGEX, ("Split", "[0-9][0-9][0-9]", "Isolated")), False): "falcon",
}

NEARLY: dict[str, str] = {
    "falcon": "text with symbols and unusual punctuation may get other tokens in llama.cpp",
    "gpt-4o": "text with rare combining marks may get other tokens in llama.cpp",
    "tekken": "text with rare combining marks may get other tokens in llama.cpp",
    "deepseek-coder": "text with wide spaces may get other tokens in llama.cpp",
}
"""Names whose splitting was seen to differ on a few odd strings, and what to say about it."""


def pre_of(tokenizer: dict[str, Any], place: str) -> tuple[str, str]:
    """Return the name for a byte-level BPE tokenizer.json, and what its user should know.

    Raises:
        ExportError: none is known that splits the same way.
    """
    steps = steps_of(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    if exact := EXACT.get((steps, ignore_merges)):
        return exact, ""
    name = KNOWN.get((steps, ignore_merges))
    if name is None:
        shown = " + ".join(" ".join(step) for step in steps) or "nothing"
        raise ExportError(
            f"this tokenizer splits text in a way that llama.cpp has no name for ({shown[:300]})",
            place=place,
            fix="export the merged safetensors or the adapter; a GGUF would read text as other tokens.",
        )
    return name, NEARLY.get(name, "")


# What llama.cpp's other names split by, too.
_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    **dict.fromkeys(("falcon3", "falcon-h1", "lfm2", "midm-2.0", "pixtral"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "hunyuan", "kormo", "megrez", "solar-open", "stablelm2"), "qwen2"),
    **dict.fromkeys(
        ("a.x-4.0", "exaone4", "gigachat", "granite-docling", "jais", "mellum", "mpt", "olmo", "phi-2"), "gpt-2"
    ),
    **dict.fromkeys(("codeshell", "command-r", "exaone", "minerva-7b", "refact", "starcoder"), "smollm"),
    **dict.fromkeys(("chatglm-bpe", "glm4", "smaug-bpe"), "dbrx"),
    **dict.fromkeys(("hunyuan-dense", "joyai-llm"), "deepseek-v3"),
    **dict.fromkeys(("kanana2", "llama4", "minimax-m2"), "gpt-4o"),
    **dict.fromkeys(("gpt3-finnish", "poro-chat"), "bloom"),
    "grok-2": "qwen2",
    "mellum2": "smollm",
    "trillion": "gpt-2",
}


def splitting_of(name: str, place: Path) -> tuple[Any, bool]:
    """Return the splitting steps that a name of llama.cpp stands for, and whether whole words skip the merges.

    Raises:
        SpecError: the name is not known.
    """
    from tokenizers import Regex, pre_tokenizers

    asked = _ALIASES.get(name, name)
    found = next((key for key, called in (EXACT | KNOWN).items() if called == asked), None)
    if found is None:
        raise refused(
            place,
            f"its tokenizer splits text by {name[:40]!r}, which is not known here"
            if name != "default"
            else "it does not say how its tokenizer splits text (tokenizer.ggml.pre)",
            "Take a newer file of the model, or name its Hub id.",
        )
    made: list[Any] = []
    for kind, *more in found[0]:
        if kind == "Split":
            made.append(pre_tokenizers.Split(Regex(more[0]), "isolated"))
        elif kind == "Digits":
            made.append(pre_tokenizers.Digits(more[0] == "each"))
        elif kind == "Punctuation":
            made.append(pre_tokenizers.Punctuation(more[0].lower()))
        else:
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="regex" in more))
    return (made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)), found[1]
