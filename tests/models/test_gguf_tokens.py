"""What a GGUF file says of its tokens by its keys: text becomes llama.cpp's tokens, and answers end where it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbtune import models
from nbtune.errors import SpecError
from tests.fuzz.gguf import LIST, TEXT, Pieces, good
from tests.support.llama import LlamaOracle, llama_library
from tests.support.tiny_models import strings

BYTES, PIECES = "llama 3, smollm, deepseek distilled", "llama 2, codellama, yi"
FLAG, WHOLE = 7, 4
NORMAL, CONTROL, USER = 1, 3, 4
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<｜end▁of▁sentence｜>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<|channel|>", "<|message|>", "<|start|>", "<|eos|>", "<|assistant|>",
)  # fmt: skip


def value(pieces: Pieces, key: str) -> Any:
    return next(entry[2] for entry in pieces.keys if entry[0] == f"tokenizer.ggml.{key}".encode())


def said(pieces: Pieces, key: str, kind: int, now: Any) -> None:
    """Let a file say something else by a key, or nothing."""
    name = f"tokenizer.ggml.{key}".encode()
    pieces.keys = [entry for entry in pieces.keys if entry[0] != name]
    if now is not None:
        pieces.keys.append([name, kind, now])


def kind(pieces: Pieces, token: int, now: int) -> None:
    value(pieces, "token_type")[1][token] = now


def called(pieces: Pieces, texts: tuple[str, ...], now: int) -> None:
    """Let tokens that are no part of others have other texts, and be of a kind."""
    tokens, kinds = value(pieces, "tokens")[1], value(pieces, "token_type")[1]
    alone = [i for i, one in enumerate(tokens) if sum(one in other for other in tokens) == 1]
    free = [i for i in alone if kinds[i] == NORMAL and len(tokens[i]) > 2]
    for i, text in zip(free, (text for text in texts if text.encode() not in tokens), strict=False):
        merges = next((entry[2] for entry in pieces.keys if entry[0] == b"tokenizer.ggml.merges"), [0, []])
        merges[1][:] = [merge for merge in merges[1] if merge.replace(b" ", b"") != tokens[i]]
        tokens[i], kinds[i] = text.encode(), now


def named(pieces: Pieces, which: str, token: int) -> None:
    """Let a file name another token, which controls."""
    said(pieces, f"{which}_token_id", WHOLE, token)
    kind(pieces, token, CONTROL)


SAYS: dict[str, Callable[[Pieces], None]] = {
    "begin": lambda p: said(p, "add_bos_token", FLAG, True),
    "no begin": lambda p: said(p, "add_bos_token", FLAG, False),
    "begin unsaid": lambda p: said(p, "add_bos_token", FLAG, None),
    "end": lambda p: said(p, "add_eos_token", FLAG, True),
    "no space before": lambda p: said(p, "add_space_prefix", FLAG, False),
    "a space before": lambda p: said(p, "add_space_prefix", FLAG, True),
    "another begin": lambda p: named(p, "bos", 307),
    "another end": lambda p: named(p, "eos", 309),
    "end of turn": lambda p: named(p, "eot", 311),
    "end of message": lambda p: named(p, "eom", 312),
    "another unknown": lambda p: named(p, "unknown", 313),
    "a word of the user's": lambda p: kind(p, 300, USER),
    "a word that controls": lambda p: kind(p, 300, CONTROL),
    "words that end": lambda p: called(p, ENDS, CONTROL),
    "usual words that end": lambda p: called(p, ENDS, NORMAL),
    "ends of messages": lambda p: called(p, ("<|end|>", "<|return|>"), CONTROL),
    "ends of harmony": lambda p: called(p, ("<|end|>", "<|return|>", "<|call|>"), CONTROL),
    "ends of gemma": lambda p: called(p, (*ENDS, "<|tool_response>"), CONTROL),
    "ends of solar": lambda p: called(p, ("<|end|>", "<|calls|>", "<|flush|>"), CONTROL),
}


@pytest.mark.parametrize("family", [BYTES, PIECES])
@pytest.mark.parametrize("says", SAYS)
def test_a_key_of_the_tokenizer_is_read_as_llama_cpp_reads_it(
    family: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (family, says) == (PIECES, "ends of gemma"):
        pytest.skip("its end of text is no Gemma's")
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    pieces, path = Pieces(good(family)), tmp_path / "said.gguf"
    SAYS[says](pieces)
    path.write_bytes(pieces.whole())
    own, folder = models.load_tokenizer(str(path)), models.resolve(str(path), weights=False)
    texts = strings(60, seed=4, specials=("<|im_start|>", "<|im_end|>", "</s>", "<|end|>", "<|call|>"))
    with LlamaOracle(path, library=llama_library(), n_ctx=64) as llama:
        assert [own(text).input_ids for text in texts] == llama.tokenize(texts, add_special=True)
        info = llama.info
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends if isinstance(ends, list) else [ends]) == set(info["ends"])


@pytest.mark.parametrize("which", ["bos", "eos"])
def test_a_token_beside_each_text_must_be_named(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp takes the eleventh then, whatever that is."""
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    pieces, path = Pieces(good(BYTES)), tmp_path / "said.gguf"
    said(pieces, f"add_{which}_token", FLAG, True)
    said(pieces, f"{which}_token_id", WHOLE, None)
    path.write_bytes(pieces.whole())
    with pytest.raises(SpecError, match=f"add_{which}_token.*does not say which"):
        models.resolve(str(path), weights=False)


def test_the_template_is_the_file_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    pieces, path = Pieces(good(BYTES)), tmp_path / "said.gguf"
    template = b"{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    pieces.keys = [entry for entry in pieces.keys if not entry[0].startswith(b"tokenizer.chat_template")]
    pieces.keys += [
        [b"tokenizer.chat_template", TEXT, template],
        [b"tokenizer.chat_templates", LIST, [TEXT, [b"tool_use"]]],
        [b"tokenizer.chat_template.tool_use", TEXT, b"never"],
    ]
    path.write_bytes(pieces.whole())
    with LlamaOracle(path, library=llama_library(), n_ctx=64) as llama:
        assert llama.info["chat_template"] == template.decode() == models.load_tokenizer(str(path)).chat_template
