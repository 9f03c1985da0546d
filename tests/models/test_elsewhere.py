"""What a model's folder names elsewhere, or lets grow, is refused by name, before anything is loaded."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import models
from nbtune.errors import NbtuneError, SpecError
from nbtune.models.elsewhere import refuse_elsewhere

ROWS = [{"prompt": "Hi aaaa", "completion": "Ahoy!"}] * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as somebody sent it."""
    ignored = shutil.ignore_patterns("*.py", "__pycache__")
    return Path(shutil.copytree(models.resolve("nbtune/tiny"), tmp_path / "sent", ignore=ignored))


def changed(file: Path, **values: Any) -> None:
    body = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**body, **values}))


def refused(folder: Path, cause: str) -> None:
    asks: tuple[Callable[[], Any], ...] = (
        lambda: nbtune.plan(model=str(folder), data=ROWS, steps=1),
        lambda: nbtune.finetune(model=str(folder), data=ROWS, steps=1),
    )
    for ask in asks:
        with pytest.raises(SpecError, match=cause) as caught:
            ask()
        assert caught.value.fix


@pytest.mark.parametrize("value", ["kernels-community/flash-attn", "evil/kernel:run", {"text_config": "evil/x@main"}])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_starts_no_kernel_of_the_hub(key: str, value: Any, folder: Path) -> None:
    changed(folder / "config.json", **{key: value})
    refused(folder, "names a kernel of the Hub")
    changed(folder / "config.json", **{key: "eager"})
    refuse_elsewhere(folder)


@pytest.mark.parametrize(
    "name", ["../other/w.safetensors", "/tmp/w.safetensors", "a/../../w.safetensors", "..\\w", "C:/w"]
)
def test_an_index_names_no_file_elsewhere(name: str, folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    shutil.move(folder / "model.safetensors", other / "w.safetensors")
    changed(folder / "model.safetensors.index.json", weight_map={"model.norm.weight": name})
    refused(folder, "which is no file of its folder")


def test_an_adapter_beside_a_model_brings_no_other_model(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    changed(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(other), r=2)
    refused(folder, "a model and an adapter are in one folder")


def step(text: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: text}, "content": content}


GROWING = {
    "doubling": [step("a", "aa")] * 40,
    "a long one": [step("a", "a" * 5000)],
    "an empty pattern": [step("", "xyz")] * 10,
    "a pattern that finds nothing": [step("(?=a)", "a", "Regex")] * 40,
    "in one another": [{"type": "Sequence", "normalizers": [step("a", "aaaaaa")] * 5}] * 2,
}


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize("way", GROWING)
def test_replacements_that_make_ever_longer_texts_are_refused(way: str, part: str, folder: Path) -> None:
    key = {"normalizer": "normalizers", "decoder": "decoders"}[part]
    changed(folder / "tokenizer.json", **{part: {"type": "Sequence", key: GROWING[way]}})
    with pytest.raises(SpecError, match="letters of one"):
        models.load_tokenizer(str(folder))
    with pytest.raises(NbtuneError, match="letters of one"):
        nbtune.export.export_gguf(nbtune.export.ExportSource(folder), ["q8_0"], folder.parent / "out")


def test_what_tokenizers_have_is_no_growth(folder: Path) -> None:
    usual = [step(" ", "▁"), step("``", '"'), step("''", '"'), step("\n", "<n>"), step(" {2,}", " ", "Regex")]
    usual += [step("\\s+", " ", "Regex")] * 20
    changed(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": usual})
    assert models.load_tokenizer(str(folder))("Hi").input_ids


def test_a_pattern_that_gives_up_is_a_sentence(folder: Path) -> None:
    body = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [split, body["pre_tokenizer"]]}
    changed(folder / "tokenizer.json", pre_tokenizer=steps)
    with pytest.raises(NbtuneError, match="the tokenizer gives up on a text"):
        nbtune.plan(model=str(folder), data=[{"prompt": "x" * 40, "completion": "yes"}] * 3, steps=1)


def test_a_header_of_gigabytes_is_not_read(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", (1 << 36) - 100))
        file.truncate(1 << 36)  # a hole: it takes no room on the disk
    with pytest.raises(SpecError, match="truncated, or no safetensors file"):
        nbtune.plan(model=str(folder), data=ROWS, steps=1)


def test_weights_that_lie_in_one_another_are_refused_by_the_plan(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    first, second = sorted((name for name in header if name != "__metadata__"), key=str)[:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(SpecError, match="lie in one another"):
        nbtune.plan(model=str(folder), data=ROWS, steps=1)


@pytest.mark.parametrize("kind", ["\x1b[31mred", "a\nb", "<img src=x>", "\u202eevil"])
def test_a_kind_of_model_is_a_word(kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers says it in a log of its own, as it stands there."""
    changed(folder / "config.json", model_type=kind)
    refused(folder, "model_type")
    assert kind not in "".join(capfd.readouterr())
