"""A GGUF file's tokenizer as a tokenizer.json, with its special tokens, its chat template, and what ends an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nbtune.models.gguf_file.header import GgufHeader, refused
from nbtune.models.gguf_file.pretokenizers import splitting_of
from nbtune.untrusted import shortened

_KEY = "tokenizer.ggml."
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5
_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_UNSAID = {"bos": 1, "eos": 2, "unk": 0}  # SentencePiece's
# What a tokenizer costs beyond its bytes: above those that speak in tokens of their own, some 65,900 and 200 bytes.
_MOST_TOKENS, _MOST_SPECIAL, _LONGEST_SPECIAL = 1 << 19, 70_000, 1 << 10
_MOST_WAYS, _MOST_LETTERS = 1 << 21, 1 << 24  # to join two tokens into a third, each of whose letters is looked behind
_GEMMA, _END = "<|tool_response>", "</s>"  # beside the first llama.cpp takes the other for text
# What llama.cpp stops at by the token's text, whatever ids and kinds the file names.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<|end_of_text|>", "<EOT>", "_<EOT>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "[EOS]", "[EOT]", "<turn|>",
    "<|tool_response>", "<|flush|>", "<|calls|>", "<end_of_utterance>", "[e~[", "<|fim_pad|>", "<fim-pad>", "<fim_pad>",
    "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
)  # fmt: skip
# What it does not stop at where all the others are there: (others, it).
_NO_ENDS = (({"<|return|>", "<|call|>"}, "<|end|>"), ({"<|calls|>", "<|flush|>"}, "<|end|>"), ({_GEMMA}, _END))

# With which llama.cpp puts the beginning before a text where the file does not say.
_BEGIN_UNSAID = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")
_NORMALISED = ("qwen2", "qwen35", "deepseek-r1-qwen")  # Qwen's own tokenizers bring text into NFC first


class GgufVocabulary:
    """The tokens of a file, checked.

    Raises:
        SpecError: there are none, or they are of a kind that is not read here.
    """

    def __init__(self, header: GgufHeader, rows: int) -> None:
        self.header = header
        self.tokens: list[str] = header.items(_KEY + "tokens", str)
        kinds = header.items(_KEY + "token_type", int) or [_NORMAL] * len(self.tokens)
        self.model = header.text(_KEY + "model")
        if not self.tokens:
            raise refused(header.place, "it holds no tokenizer", "Name a file that has one, or set `tokenizer`.")
        if len(self.tokens) > _MOST_TOKENS:
            raise refused(header.place, f"it has {len(self.tokens):,} tokens, and no model more than {_MOST_TOKENS:,}")
        if len(self.tokens) > rows or len(kinds) != len(self.tokens):
            raise refused(
                header.place,
                f"it has {len(self.tokens):,} tokens, {len(kinds):,} kinds of them, and {rows:,} embeddings",
            )
        if self.model not in ("gpt2", "llama"):
            raise refused(
                header.place, f"its tokenizer is a {self.model[:40]!r}, which is not read", "Name its Hub id instead."
            )
        while kinds and kinds[-1] == _UNUSED:  # rows that fill the embedding up
            kinds.pop()
        marks = set(_ENDS)
        if _GEMMA in self.tokens:
            marks.remove(_END)
            kinds = [_NORMAL if text == _END else kind for text, kind in zip(self.tokens, kinds, strict=False)]
        self.kinds = [_CONTROL if text in marks else kind for text, kind in zip(self.tokens, kinds, strict=False)]
        self.ids = {kind: self._id(kind) for kind in _IDS}
        self._check_special()

    def _check_special(self) -> None:
        """See that those tokens which are looked for in every text are no more, and no longer, than a model's."""
        special = [i for i, kind in enumerate(self.kinds) if kind in (_CONTROL, _USER)]
        if len(special) > _MOST_SPECIAL:
            raise refused(
                self.header.place,
                f"{len(special):,} of its tokens are special, and no model has more than {_MOST_SPECIAL:,}",
            )
        named = [i for i in self.ids.values() if i is not None]
        if long := next((i for i in (*special, *named) if len(self.tokens[i].encode()) > _LONGEST_SPECIAL), None):
            shown, size = shortened(self.tokens[long], 20), len(self.tokens[long].encode())
            raise refused(
                self.header.place,
                f"its special token {shown} has {size:,} bytes, and no model's more than {_LONGEST_SPECIAL:,}",
            )

    def _id(self, kind: str) -> int | None:
        unsaid = _UNSAID.get(kind) if self.model == "llama" else None
        found = self.header.metadata.get(f"{_KEY}{_IDS[kind]}_token_id", unsaid)
        if kind == "unk" and self.model == "gpt2":  # bytes are never unknown, and llama.cpp asks for none
            return None
        is_id = isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(self.kinds)
        return found if is_id else None

    def ends(self) -> list[int]:
        """Return the ids at which llama.cpp stops: end of text first."""
        named = [self.ids["eos"], *(self.header.metadata.get(f"{_KEY}{kind}_token_id") for kind in ("eot", "eom"))]
        ids = [i for i in named if isinstance(i, int) and 0 <= i < len(self.kinds)]
        known = self._known()
        ends = list(dict.fromkeys([*ids, *(known[text] for text in _ENDS if text in known)]))
        texts = {self.tokens[i] for i in ends}
        without = {text for others, text in _NO_ENDS if others <= texts}
        return [i for i in ends if self.tokens[i] not in without]

    def save(self, folder: Path, context: int) -> None:
        """Write tokenizer.json, its config and the chat template into a folder."""
        try:
            tokenizer = self._byte_level() if self.model == "gpt2" else self._sentencepiece()
            self._add(tokenizer)
            tokenizer.save(str(folder / "tokenizer.json"))
        except Exception as error:
            if type(error).__module__.startswith("nbtune"):
                raise
            raise refused(self.header.place, f"its tokenizer cannot be built ({str(error)[:120]})") from error
        named = {f"{kind}_token": self.tokens[i] for kind, i in self.ids.items() if i is not None}
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            **named,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2, ensure_ascii=False), encoding="utf-8")
        template = self.header.text("tokenizer.chat_template")
        if template.strip():
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    def _byte_level(self) -> Any:
        from tokenizers import Tokenizer, decoders, models, normalizers

        pre, ignore_merges = splitting_of(self.header.text(_KEY + "pre", "default"), self.header.place)
        merges = [_pair(merge) for merge in self.header.items(_KEY + "merges", str)]
        known = self._known()
        pairs = [(a, b) for a, b in merges if a in known and b in known and a + b in known]
        tokenizer = Tokenizer(models.BPE(vocab=known, merges=pairs, ignore_merges=ignore_merges, fuse_unk=False))
        tokenizer.pre_tokenizer = pre
        if self.header.text(_KEY + "pre") in _NORMALISED:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _known(self) -> dict[str, int]:
        known: dict[str, int] = {}
        for i, text in enumerate(self.tokens[: len(self.kinds)]):
            known.setdefault(text, i)
        return known

    def _sentencepiece(self) -> Any:
        from tokenizers import Tokenizer, decoders, models, normalizers

        known = self._known()
        unknown = self.tokens[self.ids["unk"]] if self.ids["unk"] is not None else None
        model = models.BPE(
            vocab=known, merges=self._merges(known), unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
        tokenizer = Tokenizer(model)
        prefix = self.header.flag(_KEY + "add_space_prefix", True)
        first = [normalizers.Prepend("▁")] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
        last = [decoders.Strip(" ", 1, 0)] if prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
        )
        return tokenizer

    def _merges(self, known: dict[str, int]) -> list[tuple[str, str]]:
        """Return all ways to join two tokens into a third, the best-scored third first."""
        scores = self.header.items(_KEY + "scores", float)
        if len(scores) != len(self.tokens):
            raise refused(self.header.place, f"it has {len(self.tokens):,} tokens and {len(scores):,} scores of them")
        ways = []
        normal = {text: i for text, i in known.items() if self.kinds[i] == _NORMAL and len(text) <= 256}
        if (letters := sum(map(len, normal))) > _MOST_LETTERS:
            raise refused(
                self.header.place, f"its tokens have {letters:,} letters, and no model's more than {_MOST_LETTERS:,}"
            )
        for text, i in normal.items():
            for at in range(1, len(text)):
                left, right = text[:at], text[at:]
                if left in known and right in known:
                    ways.append((-scores[i], i, known[left], known[right], left, right))
            if len(ways) > _MOST_WAYS:
                raise refused(self.header.place, f"its tokens can be joined in more than {_MOST_WAYS:,} ways")
        return [(left, right) for *_, left, right in sorted(ways)]

    def _add(self, tokenizer: Any) -> None:
        """Put control and user-defined tokens in, and what stands around a text."""
        from tokenizers import AddedToken, processors

        for special, kind in ((True, _CONTROL), (False, _USER)):
            found = [text for text, i in self._known().items() if self.kinds[i] == kind and text]
            found += [self.tokens[i] for k, i in self.ids.items() if special and i is not None and k != "pad"]
            added = [AddedToken(text, special=special, normalized=False) for text in dict.fromkeys(found)]
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
        begins = self.header.text(_KEY + "pre") in _BEGIN_UNSAID or self.model == "llama"
        around = ["$A"]
        wanted = {"bos": self.header.flag(_KEY + "add_bos_token", begins)}
        wanted["eos"] = self.header.flag(_KEY + "add_eos_token", False)
        used = {kind: self.ids[kind] for kind, on in wanted.items() if on}
        if none := next((kind for kind, i in used.items() if i is None), None):
            raise refused(
                self.header.place,
                f"it puts a token beside each text ({_KEY}add_{none}_token), and does not say which ({none}_token_id)",
            )
        if not used:
            return
        texts = {kind: self.tokens[i] for kind, i in used.items() if i is not None}
        around = [*([texts["bos"]] if "bos" in texts else []), "$A", *([texts["eos"]] if "eos" in texts else [])]
        pairs = [(texts[kind], i) for kind, i in used.items() if i is not None]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around, pair=[*around, *(part.replace("$A", "$B") for part in around)], special_tokens=pairs
        )


def check_as_loaded(header: GgufHeader, folder: Path) -> None:
    """See that transformers reads text as the tokenizer.json in a folder says: for some kinds of models it puts a
    splitting of its own in its place.

    Raises:
        SpecError: it does, and text would become other tokens than llama.cpp makes of it.
    """
    from transformers import AutoTokenizer

    written = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    read = json.loads(loaded.backend_tokenizer.to_str())
    if any(written[part] != read[part] for part in ("pre_tokenizer", "normalizer")):
        kind = header.text(_KEY + "pre", "default")
        raise refused(
            header.place,
            f"transformers reads text otherwise for its architecture than its tokenizer ({kind[:40]!r}) does",
            "Name the model's Hub id or its folder of safetensors instead.",
        )


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
