"""The form's fields, made from RunSpec's: title, sentence, unit, kind and choices of each, and presets by goal."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from nbtune.spec import RunSpec
from nbtune.spec.peers_names import ALIASES

FIRST = ("model", "data", "steps", "epochs", "adapter.r", "learning_rate")  # steps and sliders of the form
GROUPS = ("learning", "adapter", "data", "memory", "watching")
_GROUP_OF = {
    **dict.fromkeys(("adapter", "method", "beta", "loss", "rewards", "teacher", "start_from"), "adapter"),
    **dict.fromkeys(("data", "train_on", "train_spans", "row_weights", "overflow", "thinking", "terminators"), "data"),
    **dict.fromkeys(("tokenizer", "labels", "chat_template", "on_error", "mix", "order", "sequence_len"), "data"),
    "packing": "data",
    **dict.fromkeys(("dtype", "device", "gpus", "weights", "activations", "accelerate", "memory"), "memory"),
    **dict.fromkeys(("micro_batch_size", "cluster"), "memory"),
    **dict.fromkeys(("eval", "checkpoint", "samples"), "watching"),
}
_OFFERED = {"gpus": ["1", "2", "4", "8", "all"]}  # beside whatever else is typed: a list of which ones
_LEFT_OUT = ("trust_remote_code",)  # a decision for a line of YAML, not for a tick

# What a goal asks for, and how careful: later keys win. Ranks and epochs are starting points, not truths.
GOALS: dict[str, dict[str, Any]] = {
    "style": {"adapter.r": 16},
    "facts": {"adapter.r": 64, "epochs": 5},
    "json": {"adapter.r": 16, "train_on": "last_answer"},
    "tools": {"adapter.r": 32},
}
CARE: dict[str, dict[str, Any]] = {
    "quick": {"epochs": None, "steps": 30},
    "balanced": {},
    "careful": {"adapter.dropout": 0.05, "eval.split": 0.1},
}


def preset(goal: str, care: str) -> dict[str, Any]:
    """Return dotted keys and values of a preset; None takes a value away."""
    return {**GOALS[goal], **CARE[care]}


def fields() -> list[dict[str, Any]]:
    """Return one entry a field, the first six first: key (dotted), title, help, unit, kind, choices, default, group,
    and what others call it."""
    found = list(_fields(RunSpec, "", ""))
    rank = {key: k for k, key in enumerate(FIRST)}
    return sorted(found, key=lambda entry: rank.get(entry["key"], len(FIRST)))


def _fields(part: type[BaseModel], prefix: str, of: str) -> Any:
    for name, field in part.model_fields.items():
        inner = _part(field.annotation)
        if name in _LEFT_OUT:
            continue
        if inner is not None and name != "data":
            yield from _fields(inner, f"{prefix}{name}.", str(field.title))
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        kind, choices = _kind(field.annotation)
        key = f"{prefix}{name}"
        default = None if field.default is PydanticUndefined else field.default
        yield {
            "key": key,
            "title": f"{of}: {_small(str(field.title))}" if of else field.title,
            "help": field.description,
            "unit": extra.get("unit", ""),
            "example": str((field.examples or [""])[0]),
            "kind": "data" if key == "data" else "model" if key == "model" else kind,
            "choices": choices,
            "offered": _OFFERED.get(key, []),
            "default": _word(default, kind) if isinstance(default, str | int | float | bool) else None,
            "also": " ".join(name for name, path in ALIASES.items() if path == key),
            "group": _GROUP_OF.get(key.split(".")[0], "learning"),
        }


def _word(default: Any, kind: str) -> Any:
    """Return a default as a choice among words has it."""
    return str(default).lower() if kind == "choice" and isinstance(default, bool) else default


def _small(title: str) -> str:
    return title[:1].lower() + title[1:]


def _part(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _kind(annotation: Any) -> tuple[str, list[str]]:
    options = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is Literal:
        return "choice", [str(option) for option in options]
    if get_origin(annotation) in (Union, types.UnionType) and len(options) == 1:
        return _kind(options[0])
    words = [option for option in options if get_origin(option) is Literal]
    if words and all(option is bool for option in options if option not in words):  # such as auto, true or false
        return "choice", [*(str(word) for option in words for word in get_args(option)), "true", "false"]
    simple = {bool: "bool", int: "int", float: "number", str: "text"}
    return simple.get(annotation, "yaml"), []
