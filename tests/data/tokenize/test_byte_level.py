"""Tokens by words seen before are the tokenizer's own."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nbtune.data.tokenize.byte_level import Words
from tests.support.tiny_models import corpus

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = LLAMA3.replace("{1,3}", "").replace(r"\p{L}+", r"[\p{L}\p{M}]+")
SPLITS = {"llama3": LLAMA3, "gpt4o": GPT4O, "qwen2": QWEN2, "qwen3.5": QWEN35, "gpt2": None, "digits": "digits"}


@cache
def backend(kind: str) -> Any:
    made = Tokenizer(models.BPE())
    pattern = SPLITS[kind]
    if pattern is None:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif pattern == "digits":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken("<think>", normalized=False)])
    return made


TEXT = st.lists(
    st.one_of(
        st.characters(max_codepoint=127),
        st.sampled_from(
            ["<|im_start|>", "<|im_end|>", "<think>", "<|im", "'s", "'LL", "\r\n", "   ", "the", " and", "12345"]
        ),
    ),
    max_size=30,
).map("".join)


@pytest.mark.parametrize("kind", SPLITS)
def test_words_give_the_tokenizers_own_tokens(kind: str) -> None:
    words = Words(backend(kind))
    assert words.usable

    @given(TEXT)
    def same(text: str) -> None:
        ids = words.ids(text)
        assert ids is not None
        assert ids.tolist() == backend(kind).encode(text, add_special_tokens=False).ids

    same()


def test_other_tokenizers_are_left_alone() -> None:
    import json

    def changed(**change: Any) -> Any:
        return Tokenizer.from_str(json.dumps({**json.loads(backend("qwen2").to_str()), **change}))

    assert not Words(changed(normalizer={"type": "Lowercase"})).usable
    assert not Words(changed(pre_tokenizer=None)).usable
    stripping = json.loads(backend("qwen2").to_str())["added_tokens"]
    stripping[0]["rstrip"] = True
    assert not Words(changed(added_tokens=stripping)).usable
    composing = Tokenizer.from_str(backend("qwen2").to_str())
    composing.normalizer = normalizers.NFC()
    assert Words(composing).usable


def test_words_that_do_not_repeat_are_left_to_the_tokenizer() -> None:
    words, letters = Words(backend("qwen2")), "abcdefghijklmnopqrstuvwxyz"
    for a in letters:
        for b in letters:
            words.ids(" ".join(f"{a}{b}{c}{d}" for c in letters for d in letters[:10]))
    assert not words.usable


def test_what_is_added_late_is_left_to_the_tokenizer() -> None:
    late = Tokenizer.from_str(backend("qwen2").to_str())
    late.add_tokens([AddedToken("<tool>", normalized=True)])
    words = Words(late)
    assert words.usable
    assert words.ids("a <tool> b") is None
    assert words.ids("a b") is not None
