"""A model's folder by somebody who read our code: what libraries would wait for, or read into all memory, is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import models
from nbtune.errors import NbtuneError, SpecError

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


def test_links_as_the_hubs_cache_has_them_are_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for path in list(folder.iterdir()):
        shutil.move(path, tmp_path / "blobs" / path.name)
        path.symlink_to(tmp_path / "blobs" / path.name)
    assert models.load_tokenizer(str(folder))("Ahoy!").input_ids
