"""A GGUF file by somebody who read our code: it costs no more memory or time than it has bytes; refused by name."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from nbtune import models
from nbtune.errors import SpecError
from nbtune.models.gguf_file import header, vocabulary
from nbtune.models.gguf_file.configs import config_of
from nbtune.models.gguf_file.header import read_header
from tests.fuzz.gguf import LIST, TEXT, Pieces, good, text

LLAMA, QWEN, MIXED = "llama 3, smollm, deepseek distilled", "qwen 3.5 moe", "deepseek v3"
GEMMA, OSS, PIECES = "gemma 3", "gpt-oss", "llama 2, codellama, yi"


def told(pieces: Pieces, key: bytes, value: object) -> None:
    """Let a file tell another value of a key that it has."""
    [entry] = [each for each in pieces.keys if each[0] == key]
    entry[2] = value


def refused(data: bytes, tmp_path: Path, ask: Callable[[Path], object] = read_header) -> str:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(SpecError, match=r"bad\.gguf") as caught:
        ask(tmp_path / "bad.gguf")
    return str(caught.value)


def test_a_thousand_blocks_of_one_place_are_no_model(tmp_path: Path) -> None:
    pieces = Pieces(good(LLAMA))
    told(pieces, b"llama.block_count", 3000)
    [first] = [each for each in pieces.tensors if each[0] == b"blk.0.attn_norm.weight"]
    pieces.tensors = [each for each in pieces.tensors if not each[0].startswith(b"blk.")]
    pieces.tensors += [[b"blk.%d.attn_norm.weight" % i, *first[1:]] for i in range(3000)]
    assert "lie in one place" in refused(pieces.whole(), tmp_path)


def test_a_file_of_more_blocks_than_any_model_is_not_built(tmp_path: Path) -> None:
    pieces = Pieces(good(LLAMA))
    told(pieces, b"llama.block_count", 3000)
    end = len(pieces.numbers)
    pieces.tensors = [each for each in pieces.tensors if not each[0].startswith(b"blk.")]
    pieces.tensors += [[b"blk.%d.attn_norm.weight" % i, [8], 0, end + 32 * i] for i in range(3000)]
    pieces.numbers += bytes(32 * 3000)
    said = refused(pieces.whole(), tmp_path, lambda path: config_of(read_header(path)))
    assert "num_hidden_layers is 3,000, and no model has more" in said


def test_weights_that_lie_half_in_each_other_are_refused(tmp_path: Path) -> None:
    pieces = Pieces(good(LLAMA))
    later = sorted(pieces.tensors, key=lambda each: each[3])[3]
    later[3] -= 32
    said = refused(pieces.whole(), tmp_path)
    assert later[0].decode() in said
    assert "lie in one place" in said


def test_lists_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "_MOST_ITEMS", 1 << 16)
    many = b"".join(text(b"x%d" % i) + struct.pack("<IIQ", LIST, 0, 1 << 15) + bytes(1 << 15) for i in range(20))
    tracemalloc.start()
    try:
        assert "lists of 98,304 values" in refused(b"GGUF" + struct.pack("<IQQ", 3, 0, 20) + many, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_lists_of_texts_are_read_as_single_texts_are(tmp_path: Path) -> None:
    many = [b"x", b"", "\U0001f600".encode(), b"\xff\xfe", b"y" * 70_000]
    said = text(b"many") + struct.pack("<IIQ", LIST, 8, len(many)) + b"".join(map(text, many))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + said)
    wanted = [one.decode("utf-8", "replace") for one in many]
    assert read_header(tmp_path / "model.gguf").metadata["many"] == wanted


@pytest.mark.parametrize(
    ("length", "said"), [(1 << 62, "where at most"), (1 << 25, "where at most"), (70, "truncated")]
)
def test_a_text_in_a_list_that_cannot_be_so_long_is_refused(length: int, said: str, tmp_path: Path) -> None:
    many = text(b"x") + struct.pack("<Q", length) + b"short"
    listed = text(b"many") + struct.pack("<IIQ", LIST, 8, 2) + many
    assert said in refused(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + listed, tmp_path)


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "_LARGEST_HEADER", 1 << 10)
    keys = b"".join(text(b"x%d" % i) + struct.pack("<I", TEXT) + text(b"y" * 300) for i in range(9))
    assert "header has more than 1,024 bytes" in refused(b"GGUF" + struct.pack("<IQQ", 3, 0, 9) + keys, tmp_path)


def with_tokens(pieces: Pieces, tokens: list[bytes], kind: int) -> Pieces:
    """Write texts and kinds of tokens over those that a file has, from the hundredth on."""
    for entry in pieces.keys:
        if entry[0] in (b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type"):
            listed = tokens if entry[0].endswith(b"tokens") else [kind] * len(tokens)
            entry[2][1][100 : 100 + len(tokens)] = listed
    return pieces


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize(
    ("bound", "most", "tokens", "said"),
    [
        ("MOST_SPECIAL", 20, [b"<|%d|>" % i for i in range(21)], "of its tokens are special, and no model has more"),
        ("LONGEST_SPECIAL", 1024, [b"<|" + b"x" * 2000 + b"|>"], "its special token <|xxx"),
        ("MOST_TOKENS", 200, [], "tokens, and no model more than 200"),
    ],
)
def test_a_tokenizer_that_nobody_could_load_is_refused(
    kind: int, bound: str, most: int, tokens: list[bytes], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A special token of 14 MiB took tokenizers two minutes and 2.3 GiB, a hundred thousand of them 20 s."""
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vocabulary, bound, most)
    data = with_tokens(Pieces(good(LLAMA)), tokens, kind).whole()
    assert said in refused(data, tmp_path, lambda path: models.resolve(str(path), weights=False))


@pytest.mark.parametrize(
    ("bound", "said"), [("MOST_WAYS", "can be joined in more than 9 ways"), ("MOST_LETTERS", "letters, and no model")]
)
def test_tokens_that_can_be_joined_in_too_many_ways_are_refused(
    bound: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All words of two letters, of up to 19 of them, had 18 million."""
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vocabulary, bound, 9)
    tokens = [b"QZ"[: 1 + i % 2] * (1 + i // 2) for i in range(16)]
    data = with_tokens(Pieces(good(PIECES)), tokens, 1).whole()
    assert said in refused(data, tmp_path, lambda path: models.resolve(str(path), weights=False))


def test_factors_of_a_type_that_is_not_decoded_are_refused(tmp_path: Path) -> None:
    pieces = Pieces(good("phi 3 long"))
    [factors] = [each for each in pieces.tensors if each[0] == b"rope_factors_long.weight"]
    factors[2] = 24  # I8
    said = refused(pieces.whole(), tmp_path, lambda path: config_of(read_header(path)))
    assert "weights of type I8, which are not decoded" in said


@pytest.mark.parametrize(
    ("family", "key", "value", "words"),
    [
        (LLAMA, b"llama.rope.dimension_count", (1 << 32) - 1, "do not fit its weights"),
        (LLAMA, b"llama.rope.dimension_count", 3, "do not fit its weights"),
        (GEMMA, b"gemma3.rope.dimension_count", 8, "numbers of a head that turn, of which a gemma3_text has 32"),
        (QWEN, b"qwen35moe.rope.dimension_count", 64, "64 numbers of a head turn, of 32"),
        (OSS, b"gpt-oss.rope.dimension_count", 8, "of the 32 numbers of a head, not all"),
        (QWEN, b"qwen35moe.ssm.group_count", 7, "do not fit its weights"),
        (QWEN, b"qwen35moe.ssm.group_count", 0, "do not fit its weights"),
        (QWEN, b"qwen35moe.expert_used_count", 255, "num_experts_per_tok is 255, and num_experts 4: more than there"),
        (MIXED, b"deepseek2.expert_group_used_count", 255, "topk_group is 255, and n_group 2"),
        (MIXED, b"deepseek2.expert_group_count", 3, "cannot be 3 groups"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused_before_the_weights_are_read(
    family: str, key: bytes, value: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    pieces = Pieces(good(family))
    told(pieces, key, value)
    assert words in refused(pieces.whole(), tmp_path, lambda path: models.resolve(str(path), weights=False))
    assert not [*(tmp_path / "cache" / "gguf").glob("*/config.json")]
