"""Many tokens are found where an expression of as many alternatives, the longest first, finds them."""

from __future__ import annotations

import random
import re

import pytest

from nbtune.data.template import token_finder
from nbtune.data.template.token_finder import TokenFinder, finder_of

ALPHABETS = (
    "ab", "abc<|>", " \n\ta\u00a0", "\u00e9\u00e8e\u0301\u00c5\U0001f004\U0001f469\u200d\ufeff",
    "a\x00\x01\ud7ff\uffff\U0010ffff", " \u6771\u4eac\u00df\u2460\u0130\ufb01",
)  # fmt: skip


def alternatives(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True)) + ")")


@pytest.mark.parametrize("first", ALPHABETS)
@pytest.mark.parametrize("second", ALPHABETS)
def test_it_finds_what_alternatives_find(first: str, second: str) -> None:
    """Tokens of two or three letters are each other's beginnings and lie over each other."""
    chance = random.Random(first + second)
    seen = 0
    for _ in range(12):
        made = ("".join(chance.choices(first + second, k=chance.choice((1, 1, 2, 3, 4, 6, 9)))) for _ in range(40))
        tokens = tuple(dict.fromkeys(made))[: chance.randint(1, 40)]
        flat, finder = alternatives(tokens), TokenFinder(tokens)
        for _ in range(8):
            odd = ("xyz", " ", "\ud800", chance.choice(tokens)[:-1], chance.choice(tokens)[1:])
            drawn = chance.choices((*odd, *tokens, *first), k=chance.randint(0, 25))
            text = "".join(drawn)
            ends = sorted(chance.randint(0, len(text)) for _ in range(2))
            for start, end in ((0, len(text)), ends):
                wanted = [(m.start(), m.end(), m.group()) for m in flat.finditer(text, start, end)]
                assert [(m.start(), m.end(), m.group()) for m in finder.finditer(text, start, end)] == wanted
                one, other = flat.search(text, start, end), finder.search(text, start, end)
                assert (one and one.span()) == (other and (other.start(), other.end()))
                seen += len(wanted)
            assert finder.split(text) == flat.split(text)
            assert finder.findall(text) == flat.findall(text)
    assert seen > 100


@pytest.mark.parametrize("capture", [False, True])
def test_few_tokens_and_many_are_found_alike(capture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, text = tuple(f"<|{i}|>" for i in range(30)), "<|1|>Hi<|17|><|2<|2|>"
    few = finder_of(tokens, capture=capture)
    monkeypatch.setattr(token_finder, "_FEW", 29)
    many = finder_of((*tokens, "<|30|>"), capture=capture)
    assert isinstance(few, re.Pattern)
    assert isinstance(many, TokenFinder)
    assert few.findall(text) == many.findall(text) == ["<|1|>", "<|17|>", "<|2|>"]
    if capture:
        assert few.split(text) == many.split(text) == ["", "<|1|>", "Hi", "<|17|>", "<|2", "<|2|>", ""]


def test_none_are_found_of_none() -> None:
    assert finder_of(()) is None
