"""A value that a key does not take, in plain words, and what to write instead: near to what was written."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

_WORDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "`key: value` pairs",
    "mapping_type": "`key: value` pairs",
    "model_type": "`key: value` pairs",
    "model_attributes_type": "`key: value` pairs",
}
_NUMBERS = {"int_type", "int_parsing", "int_from_float", "float_type", "float_parsing"}
_PARTS = {"model_type", "model_attributes_type"}
# what others call a value of ours; keys as they are written, without blanks, dashes and cases
_MEANT = {
    "device": {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "amd": "cuda", "apple": "mps", "metal": "mps"},
    "weights": {"4bit": "nf4", "8bit": "fp8", "fp16": "16bit", "bf16": "16bit", "int4": "nf4"},
}


def in_words(errors: Iterable[Mapping[str, Any]]) -> str:
    """Return what a value must be, of what pydantic says against it, one entry for each form that was tried.

    >>> in_words([{"type": "int_parsing", "msg": ""}])
    'must be a whole number'
    """
    said = []
    for error in errors:
        words = _WORDS.get(error["type"])
        if words is None:
            message = error["msg"].removeprefix("Value error, ")
            words = message[:1].lower() + message[1:]
        else:
            words = f"must be {words}"
        words = words.replace("input should be", "must be")
        if words not in said:
            said.append(words)
    return said[0] + "".join(f", or {words.removeprefix('must be ')}" for words in said[1:])


def shown(value: Any) -> str:
    """Return what was written, to stand behind "not": a text in quotes, a list or a mapping by its name.

    >>> shown("many"), shown(True), shown([1])
    ("'many'", 'true', 'a list')
    """
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Mapping):
        return "`key: value` pairs"
    if isinstance(value, list | tuple):
        return "a list"
    return flow(value) if isinstance(value, int | float) else ""


def flow(value: Any) -> str:
    """Return a value as it stands behind its key on one line of YAML.

    >>> flow({"split": 0.1}), flow(False), flow("Who?")
    ('{split: 0.1}', 'false', 'Who?')
    """
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def instead(key: str, value: Any, error: Mapping[str, Any], part: type[BaseModel] | None = None) -> str | None:
    """Return what to write instead of a value that a key does not take; None: nothing is near it.

    >>> instead("learning_rate", "0,001", {"type": "float_parsing"})
    'write `learning_rate: 0.001`'

    Args:
        error: what pydantic says against it.
        part: what the key holds, where that has keys of its own.
    """
    kind = error["type"]
    if kind == "literal_error" and isinstance(value, str):
        options = re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
        return f"did you mean `{key}: {meant}`?" if (meant := nearest(key, value, options)) else None
    if kind in _NUMBERS and isinstance(value, str) and (number := _number(value)) is not None:
        return f"write `{key}: {number}`"
    if kind in {*_NUMBERS, "string_type"} and (name := _of_a_variable(key, value)):
        return f"a spec is text, into which no variable is put: write the value, or Python: `finetune(…, {key}={name})`"
    if kind == "string_type" and (name := _of_a_function(value)) is not None:
        return f'name it: `{key}="{name}"` with `rows=globals()`, where it is looked up, or `module:{name}`'
    if kind in ("tuple_type", "list_type") and isinstance(value, str):
        return f"write `{key}: {flow([value])}`"
    if kind in _PARTS and part is not None and isinstance(value, str | int | float) and not isinstance(value, bool):
        taken = _keys_for(part, value)
        return f"write {' or '.join(f'`{key}: {{{inner}: {word}}}`' for inner, word in taken)}" if taken else None
    return None


def _of_a_variable(key: str, value: Any) -> str | None:
    """Return the variable that was meant by ``$steps``, or ``{steps}``: to YAML a key without a value, which is left
    out, so that its own name stands in."""
    if isinstance(value, Mapping):
        return None if value else key
    found = re.fullmatch(r"\$\{?(\w+)\}?", value) if isinstance(value, str) else None
    return found[1] if found and found[1].isidentifier() else None


def _of_a_function(value: Any) -> str | None:
    return str(value.__name__) if inspect.isroutine(value) and value.__name__.isidentifier() else None


def instead_of_an_item(key: str, value: Any, error: Mapping[str, Any]) -> str | None:
    """Return what to write instead of one entry of a list; None: nothing is near it."""
    if error["type"] != "string_type":
        return None
    if (name := _of_a_function(value)) is not None:
        return f'name it: `{key}=["{name}"]` with `rows=globals()`, where it is looked up, or `module:{name}`'
    if isinstance(value, Mapping) and len(value) == 1:
        ((before, after),) = value.items()
        text = f"{before}: {after if after is not None else ''}".strip().replace('"', "'")
        return f'put quotes around it, because of its colon: `- "{text}"`'
    return f'put quotes around it: `- "{flow(value)}"`' if isinstance(value, int | float) else None


def nearest(key: str, value: str, options: Sequence[str]) -> str | None:
    """Return which of the words that a key takes was meant.

    >>> nearest("device", "GPU", ["auto", "cpu", "cuda"]), nearest("optim", "adamw8bit", ["adamw", "adamw_8bit"])
    ('cuda', 'adamw_8bit')
    """
    plain = {_plain(option): option for option in options}
    word = _plain(value)
    known = _MEANT.get(key, {}).get(word.split(":")[0], word.split(":")[0])
    if known in plain:
        return plain[known]
    near = difflib.get_close_matches(word, plain, n=1, cutoff=0.7)
    return plain[near[0]] if near and _digits(near[0]) == _digits(word) else None


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text.casefold())


def _number(text: str) -> str | None:
    """Return a number that was written as people do: ``0,001``, ``10%``, ``4 GiB``."""
    found = re.fullmatch(r"\s*(-?\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)?)\s*(%|[gG]i?[bB]?|\D{2,10})?\s*", text)
    if found is None:
        return None
    number = found[1].replace(",", ".")
    return f"{float(number) / 100:g}" if found[2] == "%" else number


def _keys_for(part: type[BaseModel], value: str | float) -> list[tuple[str, str]]:
    """Return up to two keys of a part that take a value, and how it is written there: those that people set, if any."""
    number = _number(value) if isinstance(value, str) else flow(value)
    usual: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for name, field in part.model_fields.items():
        if number is None and not _wants_text(field.annotation):
            continue
        try:
            part.model_validate({name: value if number is None else number})
        except ValidationError:
            continue
        extra = field.json_schema_extra
        rare = isinstance(extra, dict) and extra.get("advanced")
        (others if rare else usual).append((name, flow(value) if number is None else number))
    return (usual or others)[:2]


def _wants_text(annotation: Any) -> bool:
    """Return whether a key may hold any text, such as a file's name."""
    if isinstance(annotation, type):
        return issubclass(annotation, str) or (
            issubclass(annotation, BaseModel) and "source" in annotation.model_fields
        )
    return any(_wants_text(inner) for inner in getattr(annotation, "__args__", ()))
