"""A model's folder by somebody who read our code: what libraries would wait for, or read into all memory, is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import models
from nbtune.errors import NbtuneError, SpecError
from nbtune.models.tokenizer_files import copy_tokenizer

ROWS = [{"prompt": "Hi", "completion": "Ahoy!"}]
pytestmark = [pytest.mark.timeout(400), pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as somebody sent it."""
    ignored = shutil.ignore_patterns("*.py", "__pycache__")
    return Path(shutil.copytree(models.resolve("nbtune/tiny"), tmp_path / "sent", ignore=ignored))


def _ask_all(folder: Path, cause: str) -> None:
    asks: list[Any] = [
        lambda: nbtune.plan(model=str(folder), data=ROWS, steps=1),
        lambda: nbtune.finetune(model=str(folder), data=ROWS, steps=1),
        lambda: models.load_tokenizer(str(folder)),
    ]
    for ask in asks:
        with pytest.raises(SpecError, match=cause) as caught:
            ask()
        assert caught.value.fix


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors", "x.jinja"]
)
def test_a_pipe_is_named_and_not_waited_for(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    _ask_all(folder, "a pipe or a device")


def test_a_device_behind_a_link_is_named(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("/dev/zero")
    _ask_all(folder, "a pipe or a device")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_text_of_gigabytes_is_not_read(name: str, folder: Path) -> None:
    with (folder / name).open("ab") as file:
        file.truncate(1 << 36)  # a hole: it takes no room on the disk
    _ask_all(folder, "bytes")


def test_what_is_drawn_more_often_than_always_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for value in (2.43, -0.1, float("nan")):
        (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": value}))
        with pytest.raises(SpecError, match=r"attention_dropout is .* in its config\.json|config\.json \("):
            nbtune.plan(model=str(folder), data=ROWS, steps=1)
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    nbtune.plan(model=str(folder), data=ROWS, steps=1)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "~nobody-of-that-name/x", "x/" * 3000])
def test_a_name_that_no_folder_can_have_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for ask in (models.load_tokenizer, models.resolve):
        with pytest.raises(NbtuneError):
            ask(name)


def _in_the_hubs_cache(folder: Path, place: Path) -> Path:
    """A model's folder as huggingface_hub keeps it: links to files that are called by their hashes."""
    made, blobs = place / "models--you--it" / "snapshots" / "abc", place / "models--you--it" / "blobs"
    blobs.mkdir(parents=True)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = made / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return made


def test_links_as_the_hubs_cache_has_them_are_files(folder: Path, tmp_path: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    made = _in_the_hubs_cache(folder, tmp_path)
    assert models.load_tokenizer(str(made))("Ahoy!").input_ids
    copy_tokenizer(made, tmp_path)
    assert (tmp_path / "additional_chat_templates" / "tools.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize("name", ["chat_template.jinja", "x.model", "tokenizer.json", "vocab.txt", "config.json"])
def test_what_a_link_leads_to_leaves_no_house(name: str, folder: Path, tmp_path: Path) -> None:
    """`git clone` and tar keep links: whoever pushes what came of such a model would push a file of their own."""
    secret = tmp_path / "secret"
    shutil.copyfile(folder / name, secret) if (folder / name).exists() else secret.write_text("secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    _ask_all(folder, "this link leads out of the model's folder")
    if name != "config.json":  # of which no byte is copied
        with pytest.raises(NbtuneError, match="leads out of"):
            nbtune.export.export_merged(nbtune.export.ExportSource(folder), tmp_path / "merged")


def test_templates_behind_a_linked_folder_are_not_copied(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.jinja").write_text("secret")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "notes")
    with pytest.raises(NbtuneError, match="leads out of"):
        copy_tokenizer(folder, tmp_path)


@pytest.mark.parametrize(
    ("numbers", "cause"),
    [
        ({"num_hidden_layers": 2_000_000_000}, "num_hidden_layers is 2,000,000,000, and no model has more than 512"),
        ({"layer_types": ["full_attention"] * 2000}, "layer_types is 2,000"),
        ({"text_config": {"n_layers": 5000}}, "n_layers is 5,000"),
        ({"vision_config": {"depth": 10**9}}, "depth is 1,000,000,000"),
        ({"num_local_experts": 10**6}, "num_local_experts is 1,000,000"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok is 9, and num_experts 8"),
        ({"n_routed_experts": 8, "n_group": 2, "topk_group": 3}, "topk_group is 3, and n_group 2"),
        ({"n_routed_experts": 8, "n_group": 3}, "its 8 experts .* cannot be 3 groups"),
    ],
)
def test_numbers_that_no_model_has_are_refused_before_anything_is_built(
    numbers: dict[str, Any], cause: str, folder: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **numbers}))
    with pytest.raises(SpecError, match=cause):
        models.resolve(str(folder), weights=False)


def test_a_number_of_layers_that_no_list_could_hold_is_refused_everywhere(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2_000_000_000}))
    _ask_all(folder, "num_hidden_layers is")
