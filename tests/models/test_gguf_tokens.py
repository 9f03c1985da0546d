"""What a GGUF file says of its tokens by its keys: text becomes llama.cpp's tokens, and answers end where it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nbtune import models
from nbtune.errors import SpecError
from tests.fuzz.gguf import LIST, TEXT, Pieces, good
from tests.support.gguf_tokens import FLAG, WHOLE, TokenProbe, call, same, say, set_kind
from tests.support.llama import LlamaOracle, llama_library
from tests.support.tiny_models import strings

BYTES, PIECES = "llama 3, smollm, deepseek distilled", "llama 2, codellama, yi"
NORMAL, CONTROL, USER = 1, 3, 4
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<｜end▁of▁sentence｜>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<|channel|>", "<|message|>", "<|start|>", "<|eos|>", "<|assistant|>",
)  # fmt: skip


def named(pieces: Pieces, which: str, token: int) -> None:
    """Let a file name another token, which controls."""
    say(pieces, f"{which}_token_id", WHOLE, token)
    set_kind(pieces, token, CONTROL)


SAYS: dict[str, Callable[[Pieces], None]] = {
    "begin": lambda p: say(p, "add_bos_token", FLAG, True),
    "no begin": lambda p: say(p, "add_bos_token", FLAG, False),
    "begin unsaid": lambda p: say(p, "add_bos_token", FLAG, None),
    "end": lambda p: say(p, "add_eos_token", FLAG, True),
    "no space before": lambda p: say(p, "add_space_prefix", FLAG, False),
    "a space before": lambda p: say(p, "add_space_prefix", FLAG, True),
    "another begin": lambda p: named(p, "bos", 307),
    "another end": lambda p: named(p, "eos", 309),
    "end of turn": lambda p: named(p, "eot", 311),
    "end of message": lambda p: named(p, "eom", 312),
    "another unknown": lambda p: named(p, "unknown", 313),
    "a word of the user's": lambda p: set_kind(p, 300, USER),
    "a word that controls": lambda p: set_kind(p, 300, CONTROL),
    "words that end": lambda p: call(p, ENDS, CONTROL),
    "usual words that end": lambda p: call(p, ENDS, NORMAL),
    "ends of messages": lambda p: call(p, ("<|end|>", "<|return|>"), CONTROL),
    "ends of harmony": lambda p: call(p, ("<|end|>", "<|return|>", "<|call|>"), CONTROL),
    "ends of gemma": lambda p: call(p, (*ENDS, "<|tool_response>"), CONTROL),
    "ends of solar": lambda p: call(p, ("<|end|>", "<|calls|>", "<|flush|>"), CONTROL),
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


# What was read otherwise once: of a file with a vocabulary, the names of changes.
ONCE = {
    "bytes": (
        "general.name = phi3", "'<|fim_prefix|>' of kind 1", "'<MID>' of kind 5", "'<|channel|>' of kind 1",
        "fim_pad_token_id = 300", "fim_rep_token_id = 7", "eos_token_id = None", "padding_token_id = 7",
        "a byte of kind 2", "no text", "pre = falcon", "pre = deepseek-coder", "pre = tekken", "pre = gpt-4o",
        "pre = lfm2", "pre = glm4", "pre = seed-coder",
    ),
    "pieces": (
        "general.name = Phi-3 mini", "scores alike", "scores in pairs", "every eighth of kind 4",
        "every eighth of kind 5", "unknown_token_id = 7", "the begin of kind 1", "'▁▁' of kind 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("vocabulary", ONCE)
def test_what_was_read_otherwise_once_is_read_alike_or_refused(
    vocabulary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    with TokenProbe(vocabulary, tmp_path) as probe:
        seen = list(probe.all(ONCE[vocabulary].__contains__))
    assert not [str(outcome) for outcome in seen if not same(outcome)]
    assert len(seen) == len(ONCE[vocabulary])
    assert {outcome.how for outcome in seen} == {"alike", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", ONCE)
def test_every_key_and_token_is_read_alike_or_refused(
    vocabulary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    with TokenProbe(vocabulary, tmp_path) as probe:
        assert not [str(outcome) for outcome in probe.all() if not same(outcome)]


@pytest.mark.parametrize("which", ["bos", "eos"])
def test_a_token_beside_each_text_must_be_named(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp takes token 11 then, here an ordinary word."""
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    pieces, path = Pieces(good(BYTES)), tmp_path / "said.gguf"
    say(pieces, f"add_{which}_token", FLAG, True)
    say(pieces, f"{which}_token_id", WHOLE, None)
    path.write_bytes(pieces.whole())
    unsaid = {"bos": "add_bos_token.*does not say which", "eos": "has no tokenizer.ggml.eos_token_id"}
    with pytest.raises(SpecError, match=unsaid[which]):
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
