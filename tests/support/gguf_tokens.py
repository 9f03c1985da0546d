"""What each key of a GGUF file does to its tokens: in llama.cpp, and in what nbtune reads of the very file.

The merges of both vocabularies are learnt without any splitting, on texts of many scripts, so that another border or
another order changes the ids. Every key of a tokenizer that llama.cpp's library knows gets other values.

``python -m tests.support.gguf_tokens [bytes|pieces|PART OF A CHANGE …]`` tries them, and prints what differs.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nbtune import models
from nbtune.errors import ExportError, SpecError
from tests.fuzz.gguf import LIST, TEXT, Pieces
from tests.support.llama import LlamaOracle, llama_library
from tests.support.tiny_models import corpus, strings

WHOLE, SIGNED, REAL, FLAG = 4, 5, 6, 7
KINDS = range(7)  # of a token: undefined, normal, unknown, control, user's, unused, byte
Change = Callable[[Pieces], None]

HARD = (
    "👩‍👩‍👧‍👦👍🏽 🇩🇪🏳️‍🌈", "東京都に行きました。日本語のテスト", "한국어 텍스트 가각", "שלום עולם, مرحبا بالعالم ١٢٣",
    "1234567890 12 345 6,789.01 ２０２４ ²³½", "a  b   c    d\t\te\n\n\nf \n g\r\n\r\nh",
    "   leading and trailing   ", "\u00a0\u3000\u2003nbsp\u200b\ufeff", "e\u0301 é ñ n\u0303 İi ǅ ß ﬁ",
    "I'LL we'Ve don't it’s 'S", "don_t snake_case x=1;y+=2", "", " ", "\n", "▁ ▁▁", "<0x41><0x0A>",
    "<s></s><unk>", "นี่คือภาษาไทย हिन्दी தமிழ்", "((a||b)&&!c) … «¿» —", "𝔘𝔫𝔦 𐍈 🀄",
)  # fmt: skip
# Texts by which llama.cpp knows tokens, and some that only look so.
MARKS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<｜end▁of▁sentence｜>", "[e~[", "<|fim_prefix|>", "<fim-prefix>",
    "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>", "<|fim_suffix|>",
    "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|fim_middle|>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
    "<|fim_pad|>", "<fim-pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<REPO>", "<reponame>",
    "<|file_sep|>", "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", "<|assistant|>", "<|user|>",
    "<unused7>", "  ", "\n\n", "\t", "▁▁", "▁",
)  # fmt: skip
GROUPS = (
    ("<|end|>", "<|return|>", "<|call|>"), ("<|end|>", "<|calls|>", "<|flush|>"), ("<|fim_prefix|>", "<PRE>"),
    ("<|fim_pad|>", "<PAD>", "[PAD]"), ("<|repo_name|>", "<|fim_repo|>"), ("<|tool_response>", "</s>"),
    ("<|a|>", "<|a|><|b|>", "<|b|>"),
)  # fmt: skip
NAMES = (
    "default", "", "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "minicpm5", "deepseek-llm", "deepseek-coder", "deepseek-v3", "youtu", "falcon", "mpt",
    "starcoder", "gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "modern-bert", "jais-2", "gemma4",
    "jina-v2-code", "roberta-bpe", "refact", "command-r", "qwen2", "deepseek-r1-qwen", "kormo", "qwen35",
    "stablelm2", "olmo", "dbrx", "smaug-bpe", "poro-chat", "glm4", "chatglm-bpe", "viking", "jais", "tekken",
    "smollm", "codeshell", "bloom", "gpt3-finnish", "exaone", "exaone4", "exaone-moe", "chameleon",
    "minerva-7b", "megrez", "gpt-4o", "llama4", "kanana2", "superbpe", "trillion", "granite-docling",
    "bailingmoe", "bailingmoe2", "llada-moe", "seed-coder", "hunyuan", "hunyuan-dense", "joyai-llm", "kimi-k2",
    "grok-2", "afmoe", "laguna", "minimax-m2", "solar-open", "mellum2", "whisper", "no-such-name",
)  # fmt: skip


@dataclass
class Outcome:
    """What became of a file's tokens, `how` in one word, and of one text that shows it."""

    vocabulary: str
    change: str
    how: str
    said: str = ""

    def __str__(self) -> str:
        return f"{self.how:9} {self.vocabulary}: {self.change} {self.said[:330]}"


def texts() -> list[str]:
    """Texts that tokenizers read differently, with the marks written out."""
    chance = random.Random(3)
    marks = [*MARKS, "<s>", "</s>", "<unk>", "<|im_start|>"]
    between = ("", " ", "  ", "\n", "\n\n", "a", " b ", "\t", "1", "é")
    mixed = ["".join(chance.choice(between) + chance.choice(marks) for _ in range(4)) for _ in range(60)]
    alone = [f"x {mark} \n y{mark}z" for mark in marks]
    return [
        *HARD,
        *alone,
        *mixed,
        "<|a|><|b|>",
        "<|a|><|a|><|b|>x",
        *strings(60, seed=9, specials=("<|im_end|>", "</s>")),
    ]


@cache
def vocabulary(kind: str) -> bytes:
    """A file of one small layer, with a tokenizer of llama.cpp's kind "gpt2" ("bytes") or "llama" ("pieces")."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers import models as tokenizer_models
    from transformers import LlamaConfig

    from nbtune.export import ExportSource, export_gguf
    from tests.support.tiny_models import save_model, save_tokenizer, sentencepiece_like

    learnt_on = [*corpus(300), *HARD * 6, *MARKS, *strings(200, seed=5)]
    if kind == "bytes":
        tokenizer = Tokenizer(tokenizer_models.BPE())
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=1200, initial_alphabet=alphabet, show_progress=False, max_token_length=10
        )
        tokenizer.pre_tokenizer = plain
        tokenizer.train_from_iterator(learnt_on, trainer)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer = sentencepiece_like(prefix=True, vocab=1200, texts=learnt_on)
    folder = Path(tempfile.mkdtemp(prefix="nbtune-tokens-"))
    begin = "<s>" if kind == "pieces" else "<|begin|>"
    extra = ("<|im_start|>", "<|im_end|>", "<unk>", "<s>", "</s>", "<|endoftext|>")
    made = save_tokenizer(tokenizer, folder / "tokenizer", bos=begin, eos="<|im_end|>", add_bos=True, extra=extra)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    save_model(LlamaConfig(vocab_size=len(made), num_key_value_heads=1, **sizes), folder / "model")
    source = ExportSource(folder / "model", name="tiny", tokenizer=folder / "tokenizer")
    data = export_gguf(source, ["f16"], folder)[0].path.read_bytes()
    shutil.rmtree(folder)
    return data


def value(pieces: Pieces, key: str) -> Any:
    """The value of a key of the tokenizer; None where it is not there."""
    return next((entry[2] for entry in pieces.keys if entry[0] == f"tokenizer.ggml.{key}".encode()), None)


def say(pieces: Pieces, key: str, kind: int, now: Any) -> None:
    """Let a file say something else by a key, or nothing."""
    name = key.encode() if key.startswith("general.") else f"tokenizer.ggml.{key}".encode()
    pieces.keys = [entry for entry in pieces.keys if entry[0] != name]
    if now is not None:
        pieces.keys.append([name, kind, now])


def set_kind(pieces: Pieces, token: int, now: int) -> None:
    """Let a token be of another kind."""
    value(pieces, "token_type")[1][token] = now


def call(pieces: Pieces, names: tuple[str, ...], now: int | None) -> None:
    """Let tokens that are no part of others have other texts, and be of a kind."""
    tokens, kinds = value(pieces, "tokens")[1], value(pieces, "token_type")[1]
    alone = [i for i, one in enumerate(tokens) if sum(one in other for other in tokens) == 1]
    free = [i for i in alone if kinds[i] == 1 and len(tokens[i]) > 2]
    for name in names:
        if (mark := name.encode()) in tokens:
            i = tokens.index(mark)
        else:
            i = free.pop(0)
            merges = value(pieces, "merges") or [0, []]
            merges[1][:] = [merge for merge in merges[1] if merge.replace(b" ", b"") != tokens[i]]
            tokens[i] = mark
        if now is not None:
            kinds[i] = now


def keys_of_llama() -> list[str]:
    """Every key of a tokenizer that llama.cpp's library knows."""
    library = next(path for path in sorted(llama_library().glob("libllama.*")) if "common" not in path.name)
    found = re.findall(rb"\0tokenizer\.ggml\.([a-z_.]+)(?=\0)", library.read_bytes())
    return sorted({key.decode() for key in found})


def changes(kind: str, pieces: Pieces) -> Iterator[tuple[str, Change]]:
    """Each change of a file, with its name."""
    count = len(value(pieces, "tokens")[1])
    for key in keys_of_llama():
        if key.endswith("_id"):
            for i in (0, 1, 2, 7, 300, count // 2, count - 1, count, 1 << 31, None):
                yield f"{key} = {i}", lambda p, key=key, i=i: say(p, key, WHOLE, i)
                if i is not None and i < count:
                    yield f"{key} = {i}, which controls", lambda p, key=key, i=i: (
                        say(p, key, WHOLE, i), set_kind(p, i, 3),
                    )[0]  # fmt: skip
        elif re.match("add_|remove_|normalizer", key):
            for flag in (True, False, None):
                yield f"{key} = {flag}", lambda p, key=key, flag=flag: say(p, key, FLAG, flag)
    begin, end = (value(pieces, f"{which}_token_id") for which in ("bos", "eos"))
    some = {"a byte": 20, "a word": 300, "a long word": count // 2, "the first": 0, "the begin": begin, "the end": end}
    for name, i in some.items():
        yield from ((f"{name} of kind {now}", lambda p, i=i, now=now: set_kind(p, i, now)) for now in KINDS)
    for mark in MARKS:
        yield from ((f"{mark!r} of kind {now}", lambda p, m=mark, now=now: call(p, (m,), now)) for now in (1, 3, 4, 5))
    for marks in GROUPS:
        yield from ((f"{marks} of kind {now}", lambda p, m=marks, now=now: call(p, m, now)) for now in (1, 3, 4))
    for name in ("Phi-3 mini", "phi3", "Phi 3.5", "modern-bert", "jina-v2-de", "gemma"):
        yield f"general.name = {name}", lambda p, n=name: say(p, "general.name", TEXT, n.encode())
    for key, inner, item in (("suppress_tokens", SIGNED, 300), ("token_type", SIGNED, None), ("merges", TEXT, None)):
        yield f"{key} = {item}", lambda p, k=key, n=inner, i=item: say(p, k, LIST, [n, [i]] if i else None)
    yield "no kinds", lambda p: say(p, "token_type", LIST, None)
    yield "twice the same text", lambda p: value(p, "tokens")[1].__setitem__(301, value(p, "tokens")[1][300])
    yield "no text", lambda p: value(p, "tokens")[1].__setitem__(301, b"")
    yield from (_pieces if kind == "pieces" else _bytes)(pieces)


def _pieces(pieces: Pieces) -> Iterator[tuple[str, Change]]:
    count = len(value(pieces, "tokens")[1])

    def scores(made: Callable[[list[float]], list[float]]) -> Change:
        return lambda p: say(p, "scores", LIST, [REAL, made(value(p, "scores")[1])])

    yield "scores alike", scores(lambda old: [-1000.0] * len(old))
    yield "scores turned", scores(lambda old: [-one for one in old])
    yield "scores in pairs", scores(lambda old: [float(int(one) // 2) for one in old])
    yield "scores of bytes", scores(lambda old: [5.0 if i < 300 else one for i, one in enumerate(old)])
    yield "scores of strangers", scores(lambda old: [random.Random(i).random() for i in range(len(old))])
    yield "scores whole", lambda p: say(p, "scores", LIST, [SIGNED, [int(one) for one in value(p, "scores")[1]]])
    yield "scores gone", lambda p: say(p, "scores", LIST, None)
    for now in KINDS:
        yield (
            f"every eighth of kind {now}",
            lambda p, now=now: [set_kind(p, i, now) for i in range(264, count, 8)] and None,
        )
        yield f"bytes of kind {now}", lambda p, now=now: [set_kind(p, i, now) for i in range(3, 259)] and None


def _bytes(pieces: Pieces) -> Iterator[tuple[str, Change]]:
    for name in NAMES:
        yield f"pre = {name}", lambda p, n=name: say(p, "pre", TEXT, n.encode())
    yield "pre gone", lambda p: say(p, "pre", TEXT, None)
    yield "merges twice", lambda p: value(p, "merges")[1].extend(value(p, "merges")[1][::-1])
    yield "merges turned", lambda p: value(p, "merges")[1].reverse()
    yield "merges of none", lambda p: value(p, "merges")[1].insert(0, b"t h q")
    for now in KINDS:
        every = range(264, len(value(pieces, "tokens")[1]), 8)
        yield f"every eighth of kind {now}", lambda p, now=now, e=every: [set_kind(p, i, now) for i in e] and None
    for name in ("t5", "bert", "gemma4", "no-such"):
        yield f"model = {name}", lambda p, n=name: say(p, "model", TEXT, n.encode())


class TokenProbe:
    """One vocabulary's file, and what becomes of texts when its keys are others."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.texts = kind, folder, texts()
        self.pieces, self.llama, self.count = Pieces(vocabulary(kind)), None, 0

    def __enter__(self) -> TokenProbe:
        return self

    def __exit__(self, *_: object) -> None:
        if self.llama is not None:
            self.llama.close()

    def theirs(self, path: Path) -> tuple[list[list[int]], set[int]] | str:
        """llama.cpp's ids and ends, or what it says against the file."""
        self.llama: LlamaOracle | None = self.llama or LlamaOracle(library=llama_library())
        try:
            info = self.llama.ask("load", path=str(path), n_ctx=32, threads=1)
            return self.llama.tokenize(self.texts, add_special=True), set(info["ends"])
        except ExportError as error:
            if "crashed" in str(error):
                self.llama.close()
                self.llama = None
            return str(error)

    def ours(self, path: Path) -> tuple[list[list[int] | None], set[int]] | Exception:
        """The ids and ends that nbtune reads (None of a text that its normalizer changes), or its error."""
        try:
            own, folder = models.load_tokenizer(str(path)), models.resolve(str(path), weights=False)
            ends = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id", [])
            nfc = own.backend_tokenizer.normalizer if self.kind == "bytes" else None
            plain = [nfc is None or nfc.normalize_str(text) == text for text in self.texts]  # Qwen's bring it into NFC
            ids = [own(text).input_ids if as_it_is else None for text, as_it_is in zip(self.texts, plain, strict=True)]
            return ids, set(ends if isinstance(ends, list) else [ends])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            return error
        finally:
            shutil.rmtree(Path(os.environ["NBTUNE_CACHE"]) / "gguf", ignore_errors=True)

    def tried(self, name: str, change: Change) -> Outcome:
        """What a change does to both."""
        pieces = copy.deepcopy(self.pieces)
        change(pieces)
        self.count += 1
        path = self.folder / f"{self.kind}{self.count}.gguf"
        path.write_bytes(pieces.whole())
        theirs = self.theirs(path)
        out = Outcome(self.kind, name, "")
        if isinstance(theirs, str):
            path.unlink()
            out.how, out.said = "no file", theirs
            return out
        ours = self.ours(path)
        path.unlink()
        if isinstance(ours, SpecError):
            out.how, out.said = "refused", str(ours)
        elif isinstance(ours, Exception):
            out.how, out.said = "ERROR", repr(ours)
        else:
            both = enumerate(zip(ours[0], theirs[0], strict=True))
            off = [i for i, (one, other) in both if one is not None and one != other]
            out.how = "BUG" if off else "ends" if ours[1] != theirs[1] else "alike"
            if off:
                i = min(off, key=lambda at: len(self.texts[at]))
                out.said = f"{len(off)} of {len(self.texts)}: {self.texts[i]!r} {ours[0][i]} for {theirs[0][i]}"
            elif out.how == "ends":
                out.said = f"{sorted(ours[1])} for {sorted(theirs[1])}"
        return out

    def all(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Outcome]:
        """What each change does."""
        for name, change in changes(self.kind, self.pieces):
            if wanted(name):
                yield self.tried(name, change)


# Of several tokens beside a hole llama.cpp stops at one, whichever comes first in its memory.
_OTHERWISE = {("ends", f"{marks} of kind {now}") for marks in GROUPS[3:5] for now in (3, 4)}


def same(outcome: Outcome) -> bool:
    """Whether nothing is wrong."""
    return outcome.how in ("alike", "no file", "refused") or (outcome.how, outcome.change) in _OTHERWISE


def main(parts: list[str], *, every: bool = False) -> None:
    """Try both vocabularies, or those and the changes that are named; print what differs, or everything."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    kinds = [kind for kind in ("bytes", "pieces") if kind in parts] or ["bytes", "pieces"]
    named = [part for part in parts if part not in kinds]
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["NBTUNE_CACHE"] = temporary + "/cache"
        for kind in kinds:
            counts: Counter[str] = Counter()
            with TokenProbe(kind, Path(temporary)) as probe:
                for outcome in probe.all(lambda name: not named or any(part in name for part in named)):
                    counts[outcome.how] += 1
                    if every or not same(outcome):
                        print(outcome, flush=True)
            print("==", kind, dict(counts), flush=True)


if __name__ == "__main__":
    main([part for part in sys.argv[1:] if part != "--every"], every="--every" in sys.argv)
