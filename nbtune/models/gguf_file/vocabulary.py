"""A GGUF file's tokenizer as a tokenizer.json, with its special tokens, its chat template, and what ends an answer."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from nbtune.models.gguf_file.header import GgufHeader, refused
from nbtune.models.gguf_file.marks import CONTROL, KEY, MATCHED, NORMAL, UNUSED, USER, ends_of, kinds_of
from nbtune.models.gguf_file.pretokenizers import splitting_of
from nbtune.models.tokenizer_bounds import LONGEST_SPECIAL, MOST_LETTERS, MOST_SPECIAL, MOST_TOKENS, MOST_WAYS
from nbtune.untrusted import shortened

_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# What llama.cpp takes where a file names none: SentencePiece's, and Falcon's.
_UNSAID = {"llama": {"bos": 1, "eos": 2, "unk": 0}, "gpt2": {"bos": 11, "eos": 11}}
_NO_BEGIN = ("glm4", "chatglm-bpe")
# In a file of such a name it leaves out the spaces behind its special tokens, but for these.
_PHI, _SPACED = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")

# With which llama.cpp puts the beginning before a text where the file does not say.
_BEGIN_UNSAID = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "lfm2", "midm-2.0", "pixtral", "tekken")
_MOST_TIED = 0.01  # of all tokens
_NORMALISED = ("qwen2", "qwen35", "deepseek-r1-qwen")  # Qwen's own tokenizers bring text into NFC first


class GgufVocabulary:
    """The tokens of a file, checked.

    Raises:
        SpecError: there are none, or they are of a kind that is not read here.
    """

    def __init__(self, header: GgufHeader, rows: int) -> None:
        self.header = header
        self.tokens: list[str] = header.items(KEY + "tokens", str)
        kinds = header.items(KEY + "token_type", int) or [NORMAL] * len(self.tokens)
        self.model = header.text(KEY + "model")
        if not self.tokens:
            raise refused(header.place, "it holds no tokenizer", "Name a file that has one, or set `tokenizer`.")
        if len(self.tokens) > MOST_TOKENS:
            raise refused(header.place, f"it has {len(self.tokens):,} tokens, and no model more than {MOST_TOKENS:,}")
        if len(self.tokens) > rows or len(kinds) != len(self.tokens):
            raise refused(
                header.place,
                f"it has {len(self.tokens):,} tokens, {len(kinds):,} kinds of them, and {rows:,} embeddings",
            )
        if self.model not in ("gpt2", "llama"):
            raise refused(
                header.place, f"its tokenizer is a {self.model[:40]!r}, which is not read", "Name its Hub id instead."
            )
        while kinds and kinds[-1] == UNUSED:  # rows that fill the embedding up
            kinds.pop()
        self.kinds = kinds_of(self.tokens, kinds, header)
        self.pre = header.text(KEY + "pre", "default")
        self.ids = {kind: self._id(kind) for kind in _IDS}
        self._check_special()

    def _check_special(self) -> None:
        """See that those tokens which are looked for in every text are no more, and no longer, than a model's."""
        special = [i for i, kind in enumerate(self.kinds) if kind in MATCHED]
        if len(special) > MOST_SPECIAL:
            raise refused(
                self.header.place,
                f"{len(special):,} of its tokens are special, and no model has more than {MOST_SPECIAL:,}",
            )
        named = [i for i in self.ids.values() if i is not None]
        if long := next((i for i in (*special, *named) if len(self.tokens[i].encode()) > LONGEST_SPECIAL), None):
            shown, size = shortened(self.tokens[long], 20), len(self.tokens[long].encode())
            raise refused(
                self.header.place,
                f"its special token {shown} has {size:,} bytes, and no model's more than {LONGEST_SPECIAL:,}",
            )

    def _id(self, kind: str) -> int | None:
        """Return the token that the file names so, or llama.cpp takes for it.

        Raises:
            SpecError: it is an ordinary word, which transformers would look for in every text.
        """
        if kind == "unk" and self.model == "gpt2":  # bytes are never unknown, and llama.cpp asks for none
            return None
        said = self.header.metadata.get(f"{KEY}{_IDS[kind]}_token_id")
        unsaid = None if kind == "bos" and self.pre in _NO_BEGIN else _UNSAID[self.model].get(kind)
        found = next((i for i in (said, unsaid) if self._is_id(i)), None)
        if found is None:
            return None
        if self.kinds[found] in MATCHED:
            return found
        if kind == "eos":
            cause = f"its {KEY}eos_token_id is {found}" if found == said else f"it has no {KEY}eos_token_id"
            word = shortened(repr(self.tokens[found]), 40)
            raise refused(self.header.place, f"{cause}, so that an answer would end at an ordinary word, {word}")
        return None

    def _is_id(self, value: Any) -> TypeGuard[int]:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.kinds)

    def ends(self) -> list[int]:
        """Return the ids at which llama.cpp stops: end of text first."""
        return ends_of(self.tokens[: len(self.kinds)], self._known(), self.header.metadata, self.ids["eos"])

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

        pre, ignore_merges = splitting_of(self.pre, self.header.place)
        merges = [_pair(merge) for merge in self.header.items(KEY + "merges", str)]
        known = self._known()
        pairs = [(a, b) for a, b in merges if a in known and b in known]
        if (lost := next((a + b for a, b in pairs if a + b not in known), None)) is not None:
            said = f"its {KEY}merges make {shortened(repr(lost), 60)}, which is none of its tokens"
            raise refused(self.header.place, said, "Name its Hub id instead.")
        tokenizer = Tokenizer(models.BPE(vocab=known, merges=pairs, ignore_merges=ignore_merges, fuse_unk=False))
        tokenizer.pre_tokenizer = pre
        if self.pre in _NORMALISED:
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
        prefix = self.header.flag(KEY + "add_space_prefix", True)
        first = [normalizers.Prepend("▁")] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
        last = [decoders.Strip(" ", 1, 0)] if prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
        )
        return tokenizer

    def _merges(self, known: dict[str, int]) -> list[tuple[str, str]]:
        """Return all ways to join two tokens into a third, the best-scored third first.

        Raises:
            SpecError: scores of many tokens are alike: llama.cpp joins those from the left on, and no list says so.
        """
        scores = self.header.items(KEY + "scores", float)
        if len(scores) != len(self.tokens):
            raise refused(self.header.place, f"it has {len(self.tokens):,} tokens and {len(scores):,} scores of them")
        ways = []
        made = {text: i for text, i in known.items() if len(text) <= 256 and self._is_made(text, i)}
        if (letters := sum(map(len, made))) > MOST_LETTERS:
            raise refused(
                self.header.place, f"its tokens have {letters:,} letters, and no model's more than {MOST_LETTERS:,}"
            )
        for text, i in made.items():
            for at in range(1, len(text)):
                left, right = text[:at], text[at:]
                if left in known and right in known:
                    ways.append((-scores[i], i, known[left], known[right], left, right))
            if len(ways) > MOST_WAYS:
                raise refused(self.header.place, f"its tokens can be joined in more than {MOST_WAYS:,} ways")
        if (count := tied(ways)) > _MOST_TIED * len(known):
            said = f"its {KEY}scores do not say in which order {count:,} of its tokens are made"
            raise refused(self.header.place, said, "Name its Hub id instead.")
        return [(left, right) for *_, left, right in sorted(ways)]

    def _is_made(self, text: str, token: int) -> bool:
        """Return whether a token is joined of others: those that are looked for beforehand only with spaces in them."""
        return self.kinds[token] not in MATCHED or "▁" in text

    def _add(self, tokenizer: Any) -> None:
        """Put control and user-defined tokens in, and what stands around a text."""
        from tokenizers import AddedToken, processors

        name = self.header.text("general.name").lower()
        close = any(part in name for part in _PHI)
        for special, kind in ((True, CONTROL), (False, USER)):
            found = [text for text, i in self._known().items() if self.kinds[i] == kind and text]
            added = [
                AddedToken(text, special=special, normalized=False, rstrip=close and text not in _SPACED)
                for text in dict.fromkeys(found)
            ]
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
        begins = self.pre in _BEGIN_UNSAID or self.model == "llama"
        around = ["$A"]
        wanted = {"bos": self.header.flag(KEY + "add_bos_token", begins)}
        wanted["eos"] = self.header.flag(KEY + "add_eos_token", False)
        used = {kind: self.ids[kind] for kind, on in wanted.items() if on}
        if none := next((kind for kind, i in used.items() if i is None), None):
            cause = f"it puts a token beside each text ({KEY}add_{none}_token)"
            raise refused(self.header.place, f"{cause}, and does not say which ({none}_token_id), or names a word")
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
        kind = header.text(KEY + "pre", "default")
        raise refused(
            header.place,
            f"transformers reads text otherwise for its architecture than its tokenizer ({kind[:40]!r}) does",
            "Name the model's Hub id or its folder of safetensors instead.",
        )


def tied(ways: Sequence[tuple[float, int, int, int, str, str]]) -> int:
    """Return how many tokens are scored as others are which are made of the same token beside them.

    >>> tied([(1.0, 7, 0, 1, "a", "b"), (1.0, 8, 1, 2, "b", "c"), (2.0, 9, 2, 3, "c", "d")])
    2
    """
    tokens = {(score, token) for score, token, *_ in ways}
    counts = Counter(score for score, _ in tokens)
    ways = [way for way in ways if counts[way[0]] > 1]
    before, behind = defaultdict(set), defaultdict(set)
    for score, token, left, right, *_ in ways:
        behind[score, left].add(token)
        before[score, right].add(token)
    return len({
        token
        for score, token, left, right, *_ in ways
        if behind[score, right] - {token} or before[score, left] - {token}
    })  # fmt: skip


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
