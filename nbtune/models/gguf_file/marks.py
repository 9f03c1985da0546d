"""Tokens that llama.cpp knows by their text: what ends an answer, what stands around a hole, what is always shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbtune.models.gguf_file.header import GgufHeader, refused
from nbtune.untrusted import shortened

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED = 1, 2, 3, 4, 5
MATCHED = (CONTROL, USER)
"""Kinds of tokens that are looked for in a text before it is split. (Unknown ones are, too: they become control's.)"""

_GEMMA, _END = "<|tool_response>", "</s>"  # beside the first llama.cpp takes the other for text
# What llama.cpp stops at by the token's text, whatever ids and kinds the file names.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<|end_of_text|>", "<EOT>", "_<EOT>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "[EOS]", "[EOT]", "<turn|>",
    "<|tool_response>", "<|flush|>", "<|calls|>", "<end_of_utterance>", "[e~[",
)  # fmt: skip
# Of tokens around a hole: the keys that name one, and the texts by which one is found where none does.
_HOLES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("fim_pre", "prefix"), ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
                             "<|code_prefix|>", "<|prefix|>")),
    (("fim_suf", "suffix"), ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
                             "<|code_suffix|>", "<|suffix|>")),
    (("fim_mid", "middle"), ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
                             "<|code_middle|>", "<|middle|>")),
)  # fmt: skip
# The same of those at which it stops.
_ENDING_HOLES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("fim_pad",), ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    (("fim_rep",), ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    (("fim_sep",), ("<|file_sep|>",)),
)
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
# What it does not stop at where all the others are there: (others, it).
_NO_ENDS = (({"<|return|>", "<|call|>"}, "<|end|>"), ({"<|calls|>", "<|flush|>"}, "<|end|>"), ({_GEMMA}, _END))


def kinds_of(tokens: Sequence[str], said: Sequence[int], header: GgufHeader) -> list[int]:
    """Return the kind of each token, where a file says another of those that llama.cpp knows by their text, too.

    Raises:
        SpecError: of several tokens that it says to be words llama.cpp knows one, whichever comes first in its memory.
    """
    known = dict(zip(tokens, said, strict=False))
    controls = set(_ENDS)
    for keys, texts in (*_HOLES, *_ENDING_HOLES):
        if _named(keys, header.metadata, len(tokens)) is not None:
            continue
        found = [text for text in texts if text in known]
        if len(found) > 1 and any(known[text] not in (*MATCHED, UNKNOWN) for text in found):
            cause = f"it has the words {shortened(', '.join(found), 80)}, and no {KEY}{keys[0]}_token_id"
            raise refused(header.place, cause, "Name its Hub id.")
        controls.update(texts)
    kinds = {UNKNOWN: CONTROL}
    out = [CONTROL if text in controls else kinds.get(kind, kind) for text, kind in zip(tokens, said, strict=False)]
    for i, text in enumerate(tokens[: len(out)]):
        if text in _SHOWN and out[i] not in MATCHED:
            out[i] = USER
        if text == _END and _GEMMA in known:
            out[i] = NORMAL
    return out


def ends_of(tokens: Sequence[str], known: Mapping[str, int], metadata: Mapping[str, Any], eos: int | None) -> list[int]:
    """Return the ids at which llama.cpp stops: end of text first."""
    named = [eos, *(_named((kind,), metadata, len(tokens)) for kind in ("eot", "eom"))]
    ends = [i for i in named if i is not None] + [known[text] for text in _ENDS if text in known]
    for keys, texts in _ENDING_HOLES:
        one = _named(keys, metadata, len(tokens))
        ends += [known[text] for text in texts if text in known] if one is None else [one]
    there = {tokens[i] for i in ends}
    without = {text for others, text in _NO_ENDS if others <= there}
    return [i for i in dict.fromkeys(ends) if tokens[i] not in without]


def _named(kinds: Sequence[str], metadata: Mapping[str, Any], count: int) -> int | None:
    """Return the id that the last of some keys names; one beyond the tokens names none."""
    found = None
    for kind in kinds:
        value = metadata.get(f"{KEY}{kind}_token_id")
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
            found = value
    return found
