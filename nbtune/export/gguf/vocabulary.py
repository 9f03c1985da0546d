"""A tokenizer as GGUF metadata: tokens, types, merges or scores, special ids, flags, chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbtune.data.tokenize.terminators import ends_of
from nbtune.errors import ExportError
from nbtune.export.gguf.sentencepiece import first_difference
from nbtune.models.gguf_file.pretokenizers import pre_of
from nbtune.models.tokenizer_bounds import refuse_odd_tokenizer
from nbtune.untrusted import panics_as_errors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass
class Vocabulary:
    """What llama.cpp has to know about a tokenizer.

    Args:
        model: ``"gpt2"`` (byte-level BPE) or ``"llama"`` (SentencePiece-like BPE).
        pre: the name of the pre-tokenizer (byte-level only).
        tokens, types: one for each row of the embedding.
        scores: SentencePiece-like only: −rank of the merge that makes the token.
        merges: byte-level only: ``"left right"``.
        ids: bos, eos, unk, pad where there are such; eot and eom: what else ends an answer.
        add_bos, add_eos: whether text gets them by itself.
        space_prefix: SentencePiece-like only: a space is put before the text.
        template: the chat template (Jinja), or None.
        notes: what the user should know.
    """

    model: str
    tokens: list[str]
    types: list[int]
    pre: str | None = None
    scores: list[float] | None = None
    merges: list[str] | None = None
    ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool | None = None
    template: str | None = None
    notes: list[str] = field(default_factory=list)

    def write(self, writer: Any) -> None:
        """Write it into a GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for kind, token in self.ids.items():
            getattr(writer, f"add_{kind}_token_id")(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        if self.template:
            writer.add_chat_template(self.template)


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """Return the tokenizer in `folder`, for an embedding of `rows` rows.

    Raises:
        ExportError: there is none, or llama.cpp has none that gives the same tokens.
    """
    return vocabulary_of(load_tokenizer(folder), rows, str(folder))


def vocabulary_of(tokenizer: Any, rows: int, place: str) -> Vocabulary:
    """Return a tokenizer of transformers as llama.cpp has it; arguments and errors as of `read_vocabulary`."""
    _must_be_fast(tokenizer, place)
    body = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = body["model"]["type"]
    if kind != "BPE":
        raise _refused(f"a {kind} tokenizer is not known", place)
    tokens, types = _tokens(body, rows, place)
    vocabulary = Vocabulary("gpt2", tokens, types)
    if _byte_level(body):
        _byte_level_bpe(vocabulary, body, place)
    else:
        _sentencepiece(vocabulary, body, place)
        _check_merging(vocabulary, tokenizer, place)
    _specials(vocabulary, tokenizer)
    return vocabulary


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in `folder`, as transformers loads it.

    Raises:
        ExportError: it cannot be loaded, or is of the slow kind.
    """
    from transformers import AutoTokenizer

    refuse_odd_tokenizer(folder, folder.name)
    try:
        with panics_as_errors():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 — whatever a damaged file makes transformers and tokenizers raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(
            f"the tokenizer cannot be loaded ({first})", place=str(folder), fix="put its files beside the weights."
        ) from None
    _must_be_fast(tokenizer, str(folder))
    return tokenizer


def _must_be_fast(tokenizer: Any, place: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise _refused("its tokenizer has no tokenizer.json form", place)


def _refused(what: str, place: str) -> ExportError:
    return ExportError(what, place=place, fix="export the merged safetensors or the adapter instead of a GGUF.")


def _tokens(body: dict[str, Any], rows: int, place: str) -> tuple[list[str], list[int]]:
    """Return the text and the type of each id; ids of the embedding that no token has are marked as unused."""
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    entries = [(text, i, NORMAL) for text, i in body["model"]["vocab"].items()]
    entries += [(t["content"], t["id"], CONTROL if t["special"] else USER_DEFINED) for t in body["added_tokens"]]
    for text, i, kind in entries:
        if i >= rows:
            raise ExportError(
                f"the tokenizer has token {i} ({text!r}), and the model only {rows} embeddings",
                place=place,
                fix="give the tokenizer that belongs to the model.",
            )
        tokens[i], types[i] = text, kind
    return tokens, types


def _byte_level(body: dict[str, Any]) -> bool:
    return "ByteLevel" in json.dumps(body.get("pre_tokenizer")) or "ByteLevel" in json.dumps(body.get("decoder"))


def _pairs(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in body["model"]["merges"]]  # type: ignore[misc]


def _byte_level_bpe(vocabulary: Vocabulary, body: dict[str, Any], place: str) -> None:
    vocabulary.pre, note = pre_of(body, place)
    if note:
        vocabulary.notes.append(note)
    vocabulary.merges = [f"{left} {right}" for left, right in _pairs(body)]
    normalizer = body.get("normalizer")
    if normalizer:
        if normalizer["type"] not in ("NFC", "NFKC"):
            raise _refused(
                f"its tokenizer changes text first ({normalizer['type']}), which llama.cpp does not do", place
            )
        vocabulary.notes.append(
            f"the tokenizer brings text into {normalizer['type']} first, llama.cpp does not: "
            "text with decomposed accents gets other tokens"
        )


def _sentencepiece(vocabulary: Vocabulary, body: dict[str, Any], place: str) -> None:
    """Read BPE over "▁"-marked text with byte fallback, as Llama 2, Mistral and Gemma have it."""
    model = body["model"]
    if not model.get("byte_fallback"):
        raise _refused("its BPE tokenizer has neither byte-level tokens nor byte fallback", place)
    vocabulary.model = "llama"
    vocabulary.space_prefix = _space_prefix(body, place)
    rank: dict[str, int] = {}
    for index, (left, right) in enumerate(_pairs(body)):
        rank.setdefault(left + right, index)
    vocabulary.scores = [float(-rank.get(text, len(rank))) for text in vocabulary.tokens]
    for i, text in enumerate(vocabulary.tokens):
        if vocabulary.types[i] == NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            vocabulary.types[i] = BYTE
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        vocabulary.types[model["vocab"][unknown]] = UNKNOWN
        vocabulary.ids["unk"] = model["vocab"][unknown]


def _check_merging(vocabulary: Vocabulary, tokenizer: Any, place: str) -> None:
    tokens, scores = vocabulary.tokens, vocabulary.scores or []
    by_text = {t: s for t, s, kind in zip(tokens, scores, vocabulary.types, strict=True) if kind == NORMAL}
    sample = first_difference(tokenizer, by_text, bool(vocabulary.space_prefix))
    if sample is not None:
        raise _refused(f"llama.cpp would read {sample[:40]!r} as other tokens than this tokenizer does", place)


def _space_prefix(body: dict[str, Any], place: str) -> bool:
    """Return whether "▁" is put before the text: by a normalizer (Prepend) or a pre-tokenizer (Metaspace)."""
    steps = _flat(body.get("normalizer"), "normalizers") + _flat(body.get("pre_tokenizer"), "pretokenizers")
    prefix = False
    for step in steps:
        kind = step["type"]
        if kind == "Prepend" and step["prepend"] == "▁":
            prefix = True
        elif kind == "Metaspace":
            prefix = step.get("prepend_scheme", "always") != "never"
        elif not (kind == "Replace" and step["content"] == "▁") and not (kind == "Split" and _on_space(step)):
            raise _refused(f"its tokenizer's step {kind!r} has no equal in llama.cpp", place)
    return prefix


def _on_space(step: dict[str, Any]) -> bool:
    return step["pattern"] in ({"String": " "}, {"String": "▁"})


def _flat(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if not step:
        return []
    if step["type"] == "Sequence":
        return [leaf for part in step[inner] for leaf in _flat(part, inner)]
    return [step]


def _specials(vocabulary: Vocabulary, tokenizer: Any) -> None:
    """Read special ids, what is put around a text, the chat template and what ends an answer in it."""
    for kind in ("bos", "eos", "unk", "pad"):
        token = getattr(tokenizer, f"{kind}_token_id", None)
        if token is not None and token < len(vocabulary.tokens):
            vocabulary.ids[kind] = int(token)
            if vocabulary.types[token] == NORMAL and kind != "unk":
                vocabulary.types[token] = CONTROL
    bare, full = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    vocabulary.add_bos = len(full) > len(bare) and full[0] == vocabulary.ids.get("bos") and full[0] != bare[0]
    vocabulary.add_eos = len(full) > len(bare) and full[-1] == vocabulary.ids.get("eos") and full[-1] != bare[-1]
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    vocabulary.template = _plain_template(template) if template else None
    _ends(vocabulary, ends_of(tokenizer).stops)


def _ends(vocabulary: Vocabulary, stops: Sequence[int]) -> None:
    """Name what ends an answer in the three keys at which llama.cpp stops, whatever kind of token it is."""
    ids = vocabulary.ids
    ends = [end for end in stops if end < len(vocabulary.tokens) and end != ids.get("eos")]
    if "eos" not in ids:  # without it llama.cpp takes a number of its own, of an ordinary token
        ids.update({"eos": ends.pop(0)} if ends else {"eos": ids["bos"]} if "bos" in ids else {})
    if "eos" not in ids:
        vocabulary.notes.append("the tokenizer has no end of text: llama.cpp stops at a token of its own choice")
    ids.update(zip(("eot", "eom"), ends, strict=False))
    for end in ends[2:]:
        vocabulary.notes.append(f"llama.cpp does not stop at {vocabulary.tokens[end]!r}, with which answers may end")


def _plain_template(template: str) -> str:
    """Return it without transformers' own ``{% generation %}`` marks, which other Jinja engines refuse; it renders the
    same."""
    template = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", template)
