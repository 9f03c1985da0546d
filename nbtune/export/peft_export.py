"""The adapter alone: a clean copy of the peft folder, without what only this machine knows."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from nbtune.atomic_io import replace_folder
from nbtune.disk import check_space, folder_bytes
from nbtune.errors import ExportError
from nbtune.export.merge import copy_tokenizer, write_generation
from nbtune.export.safetensors_reader import Weights
from nbtune.export.source import ExportedFile, ExportSource, read_json

WEIGHTS = "adapter_model.safetensors"
_PATH = re.compile(r"^(/|~|[A-Za-z]:[\\/]|\\\\|\.\.?/)")


def export_adapter(source: ExportSource, out: Path, *, card: str | None = None) -> ExportedFile:
    """Copy the adapter with its tokenizer into `out`, without paths of this machine.

    >>> nbtune.export.export_adapter(nbtune.attach("demo").export.source(), Path("adapter")).path.name
    'adapter'

    Args:
        source: `adapter` must be there; `base_id` is written as the base model's name.
        out: the folder to make.
        card: the README.md (model card), or None for none.

    Raises:
        ExportError: there is no adapter, it is not whole, no space, or `out` holds other things.
    """
    began = time.monotonic()
    adapter = adapter_folder(source)
    config = read_json(adapter / "adapter_config.json")
    weights = adapter / WEIGHTS
    if not weights.is_file():
        raise ExportError(f"there is no {WEIGHTS}", place=str(adapter), fix="see that the adapter's folder is whole.")
    with Weights(adapter, "adapter_model") as numbers:
        numbers.must_be_finite()
    check_space(out, weights.stat().st_size, ExportError)
    with replace_folder(out, shared=True, marker="adapter_config.json", raises=ExportError) as part:
        clean = without_machine_paths({**config, "base_model_name_or_path": source.base_id or None})
        (part / "adapter_config.json").write_text(json.dumps(clean, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _copy(weights, part / WEIGHTS)
        copy_tokenizer(source, part)
        write_generation(source, part)
        tokenizer_config = part / "tokenizer_config.json"
        if tokenizer_config.is_file():
            clean = without_machine_paths(read_json(tokenizer_config))
            tokenizer_config.write_text(json.dumps(clean, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if card:
            (part / "README.md").write_text(card, encoding="utf-8")
    return ExportedFile(out, "adapter", folder_bytes(out), time.monotonic() - began)


def adapter_folder(source: ExportSource) -> Path:
    """Return the source's adapter.

    Raises:
        ExportError: it has none (a full fine-tune, or a base model).
    """
    if source.adapter is None:
        raise ExportError(f"{source.name!r} has no adapter", fix="export it merged or as GGUF.")
    return source.adapter


def without_machine_paths(value: Any) -> Any:
    """Return `value` (from JSON) with every string that is a path of a machine replaced by null."""
    if isinstance(value, dict):
        return {key: without_machine_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_machine_paths(item) for item in value]
    return None if isinstance(value, str) and is_machine_path(value) else value


def is_machine_path(text: str) -> bool:
    """Return whether `text` is a path of a machine: absolute, of somebody's home, or from a working folder on.

    >>> is_machine_path("/home/ada/rows.jsonl"), is_machine_path("owner/set")
    (True, False)
    """
    return len(text) > 1 and "\n" not in text and "{" not in text and bool(_PATH.match(text))


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        while block := old.read(16 << 20):
            new.write(block)
