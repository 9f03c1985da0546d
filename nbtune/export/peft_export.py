"""The adapter alone: a clean copy of the peft folder, without what only this machine knows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from nbtune.atomic_io import replace_folder
from nbtune.disk import check_space, folder_bytes
from nbtune.errors import ExportError
from nbtune.export.merge import write_generation
from nbtune.export.safetensors_reader import Weights
from nbtune.export.source import ExportedFile, ExportSource, base_name, read_json
from nbtune.models.adapter_file import chosen
from nbtune.models.tokenizer_files import copy_tokenizer, make_portable
from nbtune.untrusted import is_machine_path

WEIGHTS = "adapter_model.safetensors"


def export_adapter(source: ExportSource, out: Path, *, card: str | None = None) -> ExportedFile:
    """Copy the adapter with its tokenizer into `out`, without paths of this machine.

    >>> nbtune.export.export_adapter(nbtune.attach("demo").export.source(), Path("adapter")).path.name
    'adapter'

    Args:
        source: `adapter` must be there; what people call the base is written into it as its name.
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
        clean = {**chosen(without_machine_paths(config)), "base_model_name_or_path": base_name(source)}
        (part / "adapter_config.json").write_text(json.dumps(clean, indent=2) + "\n", encoding="utf-8")
        _copy(weights, part / WEIGHTS)
        copy_tokenizer(source.tokenizer_folder, part)
        make_portable(part)
        write_generation(source, part)
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


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        while block := old.read(16 << 20):
            new.write(block)
