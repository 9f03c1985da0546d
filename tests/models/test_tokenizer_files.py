"""What leaves of a tokenizer is what its base has, byte for byte; only what a run changed is another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nbtune.models.tokenizer_files import copy_tokenizer, make_portable, save_tokenizer
from tests.support.tiny_models import byte_level
from tests.support.tiny_models import save_tokenizer as make_tokenizer

OWN = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
LEGACY = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1000000000000000019884624838656, "pad_token": "<pad>"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def config_of(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    return body


@pytest.fixture(params=["key", "file", "both", "named", "files", "none"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tokenizer as transformers 4 saved it, with its chat template in each of the places where one may be."""
    folder = tmp_path / "base"
    make_tokenizer(byte_level(vocab=300), folder)
    for path in (folder / "chat_template.jinja", folder / "special_tokens_map.json"):
        path.unlink(missing_ok=True)
    one, two = "{{ messages[0].content }}\n", "{{ messages[-1].content }}"
    stated: Any = {
        "key": one,
        "both": one,
        "named": [{"name": "default", "template": one}, {"name": "tool_use", "template": two}],
    }
    key = {"chat_template": stated[request.param]} if request.param in stated else {}
    (folder / "tokenizer_config.json").write_text(json.dumps({**LEGACY, **key}, indent=4))
    if request.param in ("file", "both", "files"):
        (folder / "chat_template.jinja").write_text(one)
    if request.param == "files":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(two)
    (folder / "config.json").write_text("{}")
    return folder


def test_an_unchanged_tokenizer_is_the_bases_byte_for_byte(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    save_tokenizer(tokenizer, base, tmp_path / "out")
    expected = contents(base)
    del expected["config.json"]
    assert contents(tmp_path / "out") == expected
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_a_changed_template_is_all_that_differs(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = OWN
    save_tokenizer(tokenizer, base, tmp_path / "out")
    saved, before = config_of(tmp_path / "out"), config_of(base)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == OWN
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == OWN
    assert saved.pop("chat_template", OWN) == OWN
    before.pop("chat_template", None)
    assert saved == before
    assert not (tmp_path / "out" / "additional_chat_templates").exists()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_what_transformers_5_wrote_can_be_read_by_transformers_4(tmp_path: Path) -> None:
    """Its names of classes and of more special tokens; and nothing of the machine that it was written on."""
    tokenizer = make_tokenizer(byte_level(vocab=300), tmp_path / "base")
    tokenizer.add_special_tokens({"extra_special_tokens": ["/away"]})
    tokenizer.save_pretrained(tmp_path / "base")
    config_file = tmp_path / "base" / "tokenizer_config.json"
    written = config_of(tmp_path / "base")
    assert written["tokenizer_class"] == "TokenizersBackend"
    machine = {"is_local": True, "local_files_only": False, "tokenizer_file": "/home/ada/tokenizer.json"}
    tokens = {"mask_token": "/home", "name_or_path": "owner/base"}
    config_file.write_text(json.dumps({**written, **machine, **tokens}))
    (tmp_path / "out").mkdir()
    copy_tokenizer(tmp_path / "base", tmp_path / "out")
    make_portable(tmp_path / "out")
    saved = config_of(tmp_path / "out")
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert saved["model_input_names"] == ["input_ids", "attention_mask"]  # generate() of transformers 4 refuses others
    assert saved["additional_special_tokens"] == ["/away"]
    assert not {*machine, "extra_special_tokens"} & {*saved}
    assert tokens.items() <= saved.items()
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "a /away b\n" * 3
    assert read(text)["input_ids"] == AutoTokenizer.from_pretrained(tmp_path / "base")(text)["input_ids"]


def test_code_travels_with_a_class_of_its_own_and_else_stays(tmp_path: Path) -> None:
    make_tokenizer(byte_level(vocab=300), tmp_path / "base")
    (tmp_path / "base" / "own_tokens.py").write_text("# a class\n")
    for name, own in (("plain", {}), ("own", {"auto_map": {"AutoTokenizer": ["own_tokens.Own", None]}})):
        (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(own))
        (tmp_path / name).mkdir()
        copy_tokenizer(tmp_path / "base", tmp_path / name)
        assert (tmp_path / name / "own_tokens.py").exists() is bool(own)
