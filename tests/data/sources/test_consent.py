"""What this user allowed is for one folder and one content; the key that says so is this user's alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nbtune.data.sources import consent


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_nobody_else_can_read_the_key(cache: Path) -> None:
    consent.signature_of({"a": 1})
    assert (cache / "functions.key").stat().st_mode & 0o077 == 0


def test_a_signature_is_of_all_that_it_was_given_for(cache: Path) -> None:
    subject = {"function": {"import": "a:b"}, "files": [{"path": "rows.jsonl"}], "role": "train"}
    signature = consent.signature_of(subject)
    assert consent.is_signed(dict(reversed(subject.items())), signature)
    for other in ({**subject, "role": "eval"}, {**subject, "files": []}, {**subject, "more": 1}, {}):
        assert not consent.is_signed(other, signature)
    for false in (None, "", signature[:-1], "ü" + signature[1:], signature.encode(), [signature]):
        assert not consent.is_signed(subject, false)
    (cache / "functions.key").unlink()
    assert not consent.is_signed(subject, signature)  # another user's


def test_a_word_is_for_one_folder_however_it_is_reached(tmp_path: Path) -> None:
    ours, theirs, link = (tmp_path / name for name in ("ours", "theirs", "link"))
    ours.mkdir()
    theirs.mkdir()
    link.symlink_to(ours)
    consent.remember(ours, {"model": "a"}, "the code of a")
    assert consent.is_remembered(ours, {"model": "a"})
    assert consent.is_remembered(link, {"model": "a"})
    assert consent.is_remembered(tmp_path / "theirs" / ".." / "ours", {"model": "a"})
    assert not consent.is_remembered(theirs, {"model": "a"})
    assert not consent.is_remembered(ours, {"model": "b"})


def test_code_is_another_one_with_any_file_of_it(tmp_path: Path) -> None:
    """Also in a folder within, and where a config names another class; weights and words are no code."""
    model = tmp_path / "model"
    (model / "inner").mkdir(parents=True)
    files = {"own.py": "x = 1", "inner/more.py": "y = 1", "weights.safetensors": "w", "README.md": "r"}
    files |= {
        name: json.dumps({"auto_map": {"AutoModel": "own.A"}}) for name in ("config.json", "tokenizer_config.json")
    }
    for name, text in files.items():
        (model / name).write_text(text)
    first = consent.code_of(model)
    for name, text in files.items():
        (model / name).write_text(text.replace("own.A", "own.B") if name.endswith(".json") else text + " # more")
        assert (consent.code_of(model) == first) is name.endswith((".safetensors", ".md")), name
        (model / name).write_text(text)
    assert consent.code_of(model) == first
    (model / "inner" / "more.py").rename(model / "inner" / "other.py")
    assert consent.code_of(model) != first
