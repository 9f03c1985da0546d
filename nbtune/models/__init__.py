"""Weights: where they are, how they are loaded, what is trained, and how their forward is made fast.

The names below are loaded on first use, so that importing this package costs no torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Built": "factory",
    "ModelFacts": "config_facts",
    "add_adapter": "adapters",
    "build": "factory",
    "counted": "outline_facts",
    "has_places_for": "outline_facts",
    "load_model": "loading",
    "load_tokenizer": "loading",
    "load_trainable": "trainable",
    "missing_bytes": "loading",
    "model_facts": "config_facts",
    "resolve": "loading",
    "save_adapter": "adapters",
}

__all__ = [
    "Built",
    "ModelFacts",
    "add_adapter",
    "build",
    "counted",
    "has_places_for",
    "load_model",
    "load_tokenizer",
    "load_trainable",
    "missing_bytes",
    "model_facts",
    "resolve",
    "save_adapter",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
