"""The names of settings that people know from TRL, transformers, peft, Axolotl, LLaMA-Factory and Unsloth.

A name that means exactly what one of ours does is taken for it, and written back as ours. Of the others it is said what
to write instead, or why there is none. The tables are in `nbtune.spec.peers_names`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from nbtune.errors import SpecError
from nbtune.spec.learning import WITHOUT
from nbtune.spec.peers_names import ABSENT, ALIASES, INSTEAD, NESTED, VALUES
from nbtune.spec.value_advice import flow
from nbtune.spec.zero_stages import read as read_zero_stage
from nbtune.untrusted import shortened

Path = tuple[Any, ...]
_SOURCES = ("path", "file", "files", "filename", "file_name", "data_files", "dataset", "name", "url")


def rename(
    body: Mapping[str, Any], lines: Mapping[Path, int], *, files: bool = True
) -> tuple[dict[str, Any], dict[Path, int]]:
    """Return a spec's mapping under our names, and the lines of its keys likewise.

    >>> rename({"data": "rows", "lora_r": 8, "max_steps": 5}, {})[0]
    {'data': 'rows', 'adapter': {'r': 8}, 'steps': 5}

    Args:
        files: a key may name a file that is read.

    Raises:
        SpecError: one setting stands there twice, under two names.
    """
    places, body = dict(lines), dict(body)
    read_zero_stage(body, files=files)
    ours = {key: value for key, value in body.items() if key not in ALIASES}
    for part, value in list(ours.items()):
        if isinstance(value, Mapping):
            ours[part] = _renamed_part(str(part), value, places)
    for key, value in body.items():
        if key in ALIASES:
            path = path_of(key)
            put(ours, path, value, once=key)
            if (key,) in lines:
                places[path] = lines[key,]
    return {key: value_of((key,), value) for key, value in ours.items()}, places


def path_of(key: str) -> tuple[str, ...]:
    """Return our path of a dotted key, whoever's name it is.

    >>> path_of("adapter.lora_r"), path_of("max_steps"), path_of("eval.split")
    (('adapter', 'r'), ('steps',), ('eval', 'split'))
    """
    path = tuple(ALIASES.get(key, key).split("."))
    name = NESTED.get((path[0], path[1])) if len(path) == 2 else None
    return (path[0], name) if name else path


def value_of(path: tuple[str, ...], value: Any) -> Any:
    """Return our word for the value of a key of ours: ``adamw`` for torch's ``adamw_torch``."""
    return VALUES.get(".".join(path), {}).get(value, value) if isinstance(value, str) else value


def why_not(path: tuple[int | str, ...], value: Any) -> str | None:
    """Return why a key has no such value, though others' has; None: nobody's is known.

    >>> why_not(("optim",), "ao_adamw_4bit")[:33]
    'bitsandbytes has no 4-bit AdamW, '
    """
    return WITHOUT.get(value) if path == ("optim",) and isinstance(value, str) else None


def _renamed_part(part: str, given: Mapping[str, Any], places: dict[Path, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = NESTED.get((part, key), key)
        if name in found or (name != key and name in given):
            raise _twice(f"{part}.{key}", f"{part}.{name}")
        if name != key and (part, key) in places:
            places[part, name] = places[part, key]
        found[name] = value
    return found


def put(body: dict[str, Any], path: Sequence[str], value: Any, *, once: str = "") -> None:
    """Set the value at a path of keys; parts on the way that are words or specs become mappings.

    Args:
        once: the name under which it was written: another value that is there already is refused.

    Raises:
        SpecError: see `once`.
    """
    *parents, last = path
    for part in parents:
        inner = body.get(part)
        if isinstance(inner, str) and part in ("adapter", "loss"):  # the short form `adapter: qlora`
            inner = {"type": inner}
        if isinstance(inner, BaseModel):
            inner = inner.model_dump(exclude_unset=True)
        body[part] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        body = inner
    if once and body.get(last) is not None:
        raise _twice(once, ".".join(path))
    body[last] = value


def _twice(key: str, ours: str) -> SpecError:
    return SpecError(f"`{key}` and `{ours}` are the same setting", place=key, fix="keep one of them")


def advice(key: str, kind: type[BaseModel], value: Any = None, beside: Mapping[str, Any] | None = None) -> str:
    """Return what to write instead of a key that is not there: what it is called here, why it is missing, where it
    belongs, or what is spelt nearly so.

    >>> from nbtune.spec import RunSpec
    >>> advice("load_in_4bit", RunSpec), advice("r", RunSpec, 8)
    ('write `adapter: {type: qlora}`', 'it belongs to `adapter`: write `adapter: {r: 8}`')

    Args:
        kind: the part of the spec in which it stood.
        value: what stood behind it.
        beside: the mapping in which it stood.
    """
    source = "source" in kind.model_fields
    if source and beside is not None and "source" not in beside:
        return (
            f"write `source: {shortened(flow(value), 80)}`"
            if key in _SOURCES
            else "name the file or variable that holds the rows: `data: rows.jsonl`"
        )
    if key in INSTEAD:
        return f"write `{INSTEAD[key]}`"
    if key in ABSENT and (key != "name" or "data" in kind.model_fields):
        return f"leave it out: {ABSENT[key]}"
    if home := _home_of(key, kind, value, beside or {}):
        return home
    names = [*ALIASES, *INSTEAD, *ABSENT]
    if not (near := difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.9)):
        if familiar := difflib.get_close_matches(key, names, n=1, cutoff=0.88):
            what = "write that" if familiar[0] in ALIASES else advice(familiar[0], kind)
            return f"did you mean `{familiar[0]}`? Then {what}"
        near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.75)
    if near:
        meant = kind.model_fields[near[0]]
        return f"did you mean `{near[0]}`? ({meant.title}: {(meant.description or '').rstrip('.')})"
    if longer := sorted(name for name in kind.model_fields if len(key) > 2 and name.startswith(f"{key}_")):
        return f"did you mean {' or '.join(f'`{name}`' for name in longer)}?"
    return f"known keys: {', '.join(sorted(kind.model_fields))}"


def _home_of(key: str, kind: type[BaseModel], value: Any, beside: Mapping[str, Any]) -> str | None:
    """Return where a key belongs that a part of the spec has: the one that stands there with nothing behind it, else
    the first that takes its value."""
    homes = [
        (name, part)
        for name, field in kind.model_fields.items()
        for part in parts_of(field.annotation)
        if key in part.model_fields
    ]
    for name, _ in homes:
        if name in beside and beside[name] is None:
            return f"it belongs to `{name}`, which stands above: put two spaces before it"
    for name, part in homes:
        first = {"source": "rows"} if "source" in part.model_fields else {}
        try:
            part.model_validate({**first, key: value})
        except ValidationError:
            continue
        return f"it belongs to `{name}`: write `{name}: {shortened(flow({**first, key: value}), 80)}`"
    return None


def parts_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the parts of a spec, with keys of their own, that a key's type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for inner in getattr(annotation, "__args__", ()) for part in parts_of(inner)]
