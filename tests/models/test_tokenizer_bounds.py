"""A tokenizer by somebody who read our code: refused by a sentence before it costs gigabytes, or minutes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import models
from nbtune.data.formats.reader import Parts
from nbtune.data.tokenize.encoder import Encoder
from nbtune.errors import DataError, SpecError
from nbtune.models import tokenizer_bounds
from nbtune.models.tokenizer_bounds import refuse_odd_tokenizer

ROWS = [{"prompt": "Hi", "completion": "Ahoy!"}]
Body = dict[str, Any]
GIVES_UP, SLOW = r"(\w+\s?)+\d{9}", r"[\s\S]*[\s\S]*[\s\S]*[#]\d{9}"


def steps(part: str, *made: Body) -> Callable[[Body], None]:
    inside = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[part]
    return lambda body: body.update({part: {"type": "Sequence", inside: list(made)}})


def replaced(pattern: Body, content: str) -> Body:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern: str) -> Callable[[Body], None]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return steps("pre_tokenizer", cut, level)


def special(text: str) -> Body:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": text, "special": True, **flags}


def nested(depth: int) -> Callable[[Body], None]:
    def change(body: Body) -> None:
        for _ in range(depth):
            body["normalizer"] = {"type": "Sequence", "normalizers": [body["normalizer"]]}

    return change


def padding(key: str, number: int) -> Callable[[Body], None]:
    usual = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    said = {"strategy": "BatchLongest", "pad_to_multiple_of": number}
    said = {"strategy": {"Fixed": number}, "pad_to_multiple_of": None} if key == "Fixed" else said
    return lambda body: body.update(padding={**usual, **said})


def around(body: Body) -> None:
    token = {"id": "x", "ids": [2] * 1000, "tokens": ["a"] * 1000}
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    body["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [],
        "special_tokens": {"x": token},
    }


DOUBLED = replaced({"String": "e"}, "ee")
TOKENIZERS: dict[str, tuple[Callable[[Body], Any], str]] = {
    "a number of four billion": (lambda body: body["model"]["vocab"].update(q=2**32 - 9), "the number 4,294,967,287"),
    "e is a million": (steps("normalizer", *[DOUBLED] * 20), "normalizer makes 1,048,576 letters of one"),
    "between all letters": (steps("normalizer", *[replaced({"Regex": "x*"}, "y")] * 20), "makes 1,048,576 letters"),
    "answers that grow": (steps("decoder", *[DOUBLED] * 24), "its decoder makes 16,777,216 letters of one"),
    "many steps": (steps("normalizer", *[{"type": "NFC"}] * 200), "its normalizer has 201 parts, of at most 128"),
    "a long expression": (split("|".join(f"z{i}" for i in range(9999))), "pre_tokenizer has a text of"),
    "tokens around": (around, "its post_processor has a list of 1,000"),
    "filled up": (padding("Fixed", 10**9), "fills texts up to 1,000,000,000 tokens"),
    "filled up to a multiple": (padding("multiple", 10**9), "fills texts up to 1,000,000,000 tokens"),
    "a long token": (lambda body: body["added_tokens"].append({"id": 9, **special("x" * 2000)}), "has 2,000 bytes"),
    "a box in a box": (nested(60), "cannot be read, in tokenizer.json .it is nested too deeply"),
    "too many ways": (split(GIVES_UP), "has a tokenizer that gives up on .The quick"),
    "a cube of ways": (split(SLOW), "has a tokenizer that takes .* s for a text of"),
}  # fmt: skip
CONFIGS: dict[str, tuple[str, Body, str]] = {
    "a number": ("tokenizer_config.json", {"added_tokens_decoder": {"2000000000": special("z")}}, "r 2,000,000,000"),
    "a long number": ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 400: special("z")}}, "has the number"),
    "a long token": ("tokenizer_config.json", {"bos_token": "x" * 2000}, "has 2,000 bytes"),
    "a long object": ("tokenizer_config.json", {"bos_token": special("x" * 2000)}, "has 2,000 bytes"),
    "a long one of more": ("special_tokens_map.json", {"additional_special_tokens": ["x" * 2000]}, "has 2,000 bytes"),
    "a long one added": ("added_tokens.json", {"x" * 2000: 7}, "has 2,000 bytes"),
    "an added number": ("added_tokens.json", {"x": 2**31}, "has the number 2,147,483,648"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as somebody sent it."""
    ignored = shutil.ignore_patterns("*.py", "__pycache__")
    return Path(shutil.copytree(models.resolve("nbtune/tiny"), tmp_path / "sent", ignore=ignored))


def change(path: Path, how: Callable[[Body], Any]) -> None:
    body = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    how(body)
    path.write_text(json.dumps(body), encoding="utf-8")


def refused_by_all(folder: Path, words: str) -> None:
    asks: list[Callable[[], object]] = [
        lambda: nbtune.plan(model=str(folder), data=ROWS, steps=1),
        lambda: nbtune.finetune(model=str(folder), data=ROWS, steps=1).wait(),
        lambda: models.load_tokenizer(str(folder)),
    ]
    for ask in asks:
        with pytest.raises(SpecError, match=words) as caught:
            ask()
        assert caught.value.fix


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_costs_too_much_is_refused(name: str, folder: Path) -> None:
    """A number of four billion took 17 GB, an e of a million letters ended the process, and so on."""
    how, words = TOKENIZERS[name]
    change(folder / "tokenizer.json", how)
    refused_by_all(folder, words)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_stands_beside_a_tokenizer_has_its_bounds_too(name: str, folder: Path) -> None:
    file, said, words = CONFIGS[name]
    change(folder / file, lambda body: body.update(said))
    refused_by_all(folder, words)


@pytest.mark.parametrize(
    ("bound", "most", "words"),
    [
        ("MOST_TOKENS", 999, "it has 2,048 tokens|has the number|it has [0-9,]+ tokens, of at most 999"),
        ("MOST_WAYS", 99, "it joins tokens in [0-9,]+ ways, of at most 99"),
        ("MOST_LETTERS", 999, "its tokens have [0-9,]+ letters, of at most 999"),
        ("_LARGEST", {"tokenizer.json": 9999}, "tokenizer.json has [0-9,]+ bytes, of at most 9,999"),
    ],
)
def test_a_large_tokenizer_is_refused(
    bound: str, most: Any, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_bounds, bound, most)
    with pytest.raises(SpecError, match=words):
        refuse_odd_tokenizer(folder, "sent")


def test_special_tokens_of_all_files_are_counted_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"<|{i}|>" for i in range(20)]
    own = {entry["content"] for entry in json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]}
    monkeypatch.setattr(tokenizer_bounds, "MOST_SPECIAL", 20 + len(own))
    change(folder / "special_tokens_map.json", lambda body: body.update(additional_special_tokens=texts))
    change(folder / "added_tokens.json", lambda body: body.update({text: i for i, text in enumerate(texts)}))
    refuse_odd_tokenizer(folder, "sent")
    change(folder / "added_tokens.json", lambda body: body.update({"<|more|>": 30}))
    with pytest.raises(SpecError, match=f"{21 + len(own)} of its tokens are special, of at most"):
        refuse_odd_tokenizer(folder, "sent")


@pytest.mark.parametrize(
    ("name", "line"), [("merges.txt", b"a b\n"), ("vocab.txt", b"a\n"), ("x.tiktoken", b"YQ== 1\n")]
)
def test_lines_are_counted(name: str, line: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_bounds, "_LINES", {name: 9})
    (folder / name).write_bytes(line * 9)
    refuse_odd_tokenizer(folder, "sent")
    (folder / name).write_bytes(line * 10)
    with pytest.raises(SpecError, match=f"{name} has 10 lines, of at most 9"):
        refuse_odd_tokenizer(folder, "sent")


def test_a_text_on_which_the_tokenizer_gives_up_is_told() -> None:
    """Its expression was harmless on what was tried; tokenizers then ends in a panic, which is no Exception."""
    from tokenizers import Regex, pre_tokenizers

    tokenizer = models.load_tokenizer("nbtune/tiny")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(GIVES_UP), "isolated")
    text = "The quick brown fox jumps over the lazy dog and then sleeps. " * 4
    with pytest.raises(DataError, match="the tokenizer gives up on a text"):
        Encoder(tokenizer, None).encode([Parts(((text, True),))])
