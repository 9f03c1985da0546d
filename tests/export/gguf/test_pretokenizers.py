"""Every pre-tokenizer that nbtune has a name for splits as llama.cpp's of that name; one without a name is refused.

The merges are learnt without any splitting, so that a border in another place changes the tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from nbtune.errors import ExportError
from nbtune.export import ExportSource, LlamaRunner, export_gguf
from nbtune.models.gguf_file.pretokenizers import EXACT, KNOWN, NEARLY, pre_of
from tests.support.llama import llama_library
from tests.support.tiny_models import corpus, save_model, save_tokenizer, strings


def _json(step: tuple[str, ...]) -> dict[str, Any]:
    """A step as tokenizer.json writes it."""
    kind, *rest = step
    if kind == "Split":
        return {"type": kind, "pattern": {"Regex": rest[0]}, "behavior": rest[1], "invert": False}
    if kind == "Digits":
        return {"type": kind, "individual_digits": rest == ["each"]}
    if kind == "Punctuation":
        return {"type": kind, "behavior": rest[0]}
    return {"type": kind, "add_prefix_space": False, "trim_offsets": True, "use_regex": "regex" in rest}


@pytest.fixture(scope="module")
def unsplit() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=10,
    )
    tokenizer.train_from_iterator([*corpus(300), *strings(200, seed=5)], trainer)
    return json.loads(tokenizer.to_str())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    save_model(LlamaConfig(vocab_size=1100, **sizes, **heads), folder)
    return folder


ALL = KNOWN | EXACT


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{ALL[case]}-{len(str(case))}")
def test_it_splits_as_llama_cpp(case: tuple[Any, bool], unsplit: dict[str, Any], base: Path, tmp_path: Path) -> None:
    steps, ignore_merges = case
    body = json.loads(json.dumps(unsplit))
    body["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [_json(step) for step in steps]}
    if ignore_merges:  # words that the merges do not reach
        body["model"]["ignore_merges"] = True
        body["model"]["merges"] = [merge for i, merge in enumerate(body["model"]["merges"]) if i % 7]
    tokenizer = save_tokenizer(Tokenizer.from_str(json.dumps(body)), tmp_path / "tokenizer")
    source = ExportSource(base, tokenizer=tmp_path / "tokenizer")
    file = export_gguf(source, ["f16"], tmp_path)[0]
    texts = strings(300, seed=11, specials=("<|im_end|>",)) + _borders()
    with LlamaRunner(file.path, library=llama_library(), n_ctx=32) as llama:
        got = llama.tokenize(texts)
    wrong = [t for t, a in zip(texts, got, strict=True) if a != tokenizer(t, add_special_tokens=False)["input_ids"]]
    name = ALL[case]
    if name in NEARLY and case not in EXACT:
        assert NEARLY[name] in file.notes
        assert len(wrong) <= (0.4 if name == "falcon" else 0.02) * len(texts)
    else:
        assert [wrong, [note for note in file.notes if note in NEARLY.values()]] == [[], []]


def _borders() -> list[str]:
    starts, ends = ("  ", "\n", "x", "1", "!", " "), ("  ", "a", "\n", "?")
    middles = ("\n ", "\r", "'S", "/\n", "12345", "_", "ª", "²³")
    return [a + b + c for a in starts for b in middles for c in ends]


def test_an_unknown_one_is_refused(unsplit: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(ExportError, match="no name for"):
        pre_of({**unsplit, "pre_tokenizer": split}, "here")


def test_a_trap_an_empty_or_wrong_name_gives_other_tokens_without_a_message(
    unsplit: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {**unsplit, "pre_tokenizer": _json(("ByteLevel", "regex"))}
    tokenizer = save_tokenizer(Tokenizer.from_str(json.dumps(body)), tmp_path / "tokenizer")
    monkeypatch.setattr("nbtune.export.gguf.vocabulary.pre_of", lambda *_: ("llama-bpe", ""))
    path = export_gguf(ExportSource(base, tokenizer=tmp_path / "tokenizer"), ["f16"], tmp_path)[0].path
    texts = strings(50, seed=3)
    with LlamaRunner(path, library=llama_library(), n_ctx=32) as llama:
        assert llama.tokenize(texts) != [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    monkeypatch.setattr("nbtune.export.gguf.vocabulary.pre_of", lambda *_: ("no-such-name", ""))
    path = export_gguf(ExportSource(base, tokenizer=tmp_path / "tokenizer"), ["f16"], tmp_path)[0].path
    with pytest.raises(ExportError, match="does not load"):
        LlamaRunner(path, library=llama_library(), n_ctx=32)
