"""Taking home what was trained: adapter, merged model, GGUF, Ollama folder, the Hub.

    source = ExportSource(base=Path("model"), adapter=Path("runs/demo-1/adapter"), name="demo")
    for file in export_gguf(source, ["q8_0"], Path("exports")):
        print(file.path, file.bytes)

Nothing heavy is imported until something is exported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ExportSource": "source",
    "ExportedFile": "source",
    "LlamaRunner": "llama_runner",
    "combine_adapters": "combined_adapters",
    "export_adapter": "peft_export",
    "export_adapter_gguf": "gguf.lora",
    "export_gguf": "gguf.writer",
    "export_merged": "merge",
    "export_ollama": "ollama",
    "held_importance": "importance_matrix",
    "held_rows": "reference_model",
    "render_card": "model_card",
    "take_home": "several_kinds",
}
_NAMES = {"export_adapter_gguf": "write_lora_gguf", "export_gguf": "write_gguf", "export_merged": "write_merged"}

__all__ = [
    "ExportSource",
    "ExportedFile",
    "LlamaRunner",
    "combine_adapters",
    "export_adapter",
    "export_adapter_gguf",
    "export_gguf",
    "export_merged",
    "export_ollama",
    "held_importance",
    "held_rows",
    "render_card",
    "take_home",
]

if TYPE_CHECKING:
    from nbtune.export.combined_adapters import combine_adapters
    from nbtune.export.gguf.lora import write_lora_gguf as export_adapter_gguf
    from nbtune.export.gguf.writer import write_gguf as export_gguf
    from nbtune.export.importance_matrix import held_importance
    from nbtune.export.llama_runner import LlamaRunner
    from nbtune.export.merge import write_merged as export_merged
    from nbtune.export.model_card import render_card
    from nbtune.export.ollama import export_ollama
    from nbtune.export.peft_export import export_adapter
    from nbtune.export.reference_model import held_rows
    from nbtune.export.several_kinds import take_home
    from nbtune.export.source import ExportedFile, ExportSource


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), _NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
