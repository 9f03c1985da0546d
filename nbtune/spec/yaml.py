"""A spec from YAML or a mapping, with line numbers: a cell's body and a file are the same text.

A key with nothing behind it counts as unset. Nothing is templated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from nbtune.errors import NbtuneError, SpecError
from nbtune.spec.familiar_names import advice, path_of, put, rename, value_of, why_not
from nbtune.spec.model import RunSpec
from nbtune.spec.yaml_loader import BadYaml, Forbidden, compose, construct
from nbtune.untrusted import shortened


def from_yaml(
    text: str, overrides: Mapping[str, Any] | None = None, *, name: str = "the cell", first_line: int = 1
) -> RunSpec:
    """Return the spec that a YAML text asks for.

    >>> nbtune.spec.from_yaml("data: rows\\nadapter: {r: 8}").adapter.r
    8

    Args:
        text: the body of a cell, or a file's content.
        overrides: dotted keys (``"adapter.r"``) with values that win over the text.
        name: how errors call the text.
        first_line: the number of its first line in what the user sees (2 in a cell with its magic on line 1).
    Raises:
        SpecError: with the line, what was wrong, and what to write instead.
    """
    body, lines = _load(text, name, first_line)
    return from_mapping(body, overrides, lines=lines, name=name)


def from_mapping(
    body: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    lines: Mapping[tuple[Any, ...], int] | None = None,
    name: str = "the spec",
) -> RunSpec:
    """Return the spec of a mapping; `overrides` are as in `from_yaml`, and `lines` gives the line of a path of keys.

    >>> nbtune.spec.from_mapping({"data": "rows", "steps": 3}, {"steps": 5}).steps
    5

    Raises:
        SpecError: as `from_yaml`.
    """
    body, lines = rename(body, lines or {})
    for key, value in (overrides or {}).items():
        path = path_of(key)
        put(body, path, value_of(path, value))
    _refuse_unknown(body, RunSpec, (), lines, name)
    body = _without_unset(body)
    if "data" not in body:
        raise SpecError(
            "`data` is missing", place=name, fix="say where the rows are, such as `data: rows` or `data: rows.jsonl`"
        )
    try:
        return RunSpec.model_validate(body)
    except ValidationError as error:
        raise _explain(error, lines, name) from None


@contextmanager
def placing(text: str | None, *, name: str = "the cell", first_line: int = 1) -> Iterator[None]:
    """Name, in errors in here about a key of the spec, its line in the text that the spec was read from.

    >>> with placing("data: rows\\nsteps: 3"):
    ...     raise SpecError("too few", place="steps")
    Traceback (most recent call last):
    nbtune.errors.SpecError: ...

    Args:
        text: a YAML text that `from_yaml` accepts; None: there is none, and nothing is done.
        name, first_line: as in `from_yaml`.
    """
    try:
        yield
    except NbtuneError as error:
        keys = error.keys or ((error.place,) if error.place in RunSpec.model_fields else ())
        if text is not None and keys:
            _, lines = rename(*_load(text, name, first_line))
            line = _place(_as_written(keys, lines), lines, name)
            key = error.place if error.place not in RunSpec.model_fields and error.place != name else ""
            if line != name:
                error.place = f"{line} ({key})" if key else line
        raise


def _as_written(keys: tuple[Any, ...], lines: Mapping[tuple[Any, ...], int]) -> tuple[Any, ...]:
    """Return the place as it was written: `data` may be one source, which then has no number."""
    return keys if keys[:2] in lines or keys[0] != "data" else (keys[0], *keys[2:])


def _load(text: str, name: str, first_line: int) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    try:
        node = compose(text)
    except BadYaml as error:
        raise _not_yaml(error, name, first_line) from None
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(
            "the body must be `key: value` lines",
            place=f"line {node.start_mark.line + first_line} of {name}",
            fix="write for example `data: rows`",
        )
    lines: dict[tuple[Any, ...], int] = {}
    _note_lines(node, (), first_line, lines, name)
    try:
        return construct(node), lines
    except BadYaml as error:
        raise _not_yaml(error, name, first_line) from None


def _not_yaml(error: BadYaml, name: str, first_line: int) -> SpecError:
    place = f"line {error.line - 1 + first_line} of {name}" if error.line else name
    problem = f"{error.problem} (column {error.column})" if error.line else error.problem
    if isinstance(error, Forbidden):
        return SpecError(f"this is not YAML that nbtune reads: {problem}", place=place, fix="use plain keys and values")
    fix = "write one `key: value` a line"
    if "expected ','" in problem:
        fix = "close the bracket" if "<stream end>" in problem else "put texts between brackets in quotes"
    return SpecError(f"this is not YAML: {problem}", place=place, fix=fix)


def _note_lines(
    node: yaml.Node, path: tuple[Any, ...], first: int, lines: dict[tuple[Any, ...], int], name: str
) -> None:
    lines.setdefault(path, node.start_mark.line + first)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                line = f"line {key.start_mark.line + first} of {name}"
                raise SpecError("a list or a mapping cannot be a key", place=line, fix="write one `key: value` a line")
            key_path = (*path, key.value)
            if key_path in lines:
                raise SpecError(
                    f"`{shortened(key.value)}` is there twice",
                    place=f"line {key.start_mark.line + first} of {name}",
                    fix=f"keep one; the first is on line {lines[key_path]}",
                )
            lines[key_path] = key.start_mark.line + first
            _note_lines(value, key_path, first, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), first, lines, name)


def _without_unset(body: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_unset(v) if isinstance(v, Mapping) else v for k, v in body.items() if v is not None}


def _refuse_unknown(
    body: Mapping[str, Any],
    kind: type[BaseModel],
    path: tuple[Any, ...],
    lines: Mapping[tuple[Any, ...], int],
    name: str,
) -> None:
    for key, value in body.items():
        field = kind.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            raise _unknown(str(key), kind, (*path, key), lines, name)
        for inner in _parts(field.annotation):
            if isinstance(value, Mapping):
                _refuse_unknown(value, inner, (*path, key), lines, name)
            elif isinstance(value, list | tuple):
                for index, entry in enumerate(value):
                    if isinstance(entry, Mapping):
                        _refuse_unknown(entry, inner, (*path, key, index), lines, name)


def _parts(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for inner in getattr(annotation, "__args__", ()) for part in _parts(inner)]


def _unknown(
    key: str, kind: type[BaseModel], path: tuple[Any, ...], lines: Mapping[tuple[Any, ...], int], name: str
) -> SpecError:
    key = shortened(key)
    inside = f" in `{shortened('.'.join(str(p) for p in path[:-1]))}`" if len(path) > 1 else ""
    fix = advice(key, kind)
    return SpecError(f"there is no key `{key}`{inside}", place=_place(path, lines, name), fix=fix)


def _place(path: tuple[Any, ...], lines: Mapping[tuple[Any, ...], int], name: str) -> str:
    while path and path not in lines:
        path = path[:-1]
    return f"line {lines[path]} of {name}" if path in lines and lines else name


def _explain(error: ValidationError, lines: Mapping[tuple[Any, ...], int], name: str) -> SpecError:
    first = error.errors()[0]
    loc = tuple(part for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part in ("literal",))))
    while loc and loc[-1] in ("AdapterSpec", "SourceSpec"):
        loc = loc[:-1]
    key = shortened(".".join(str(part) for part in loc))
    message = shortened(first["msg"].removeprefix("Value error, "), 300)
    if not loc:
        return SpecError(message, place=name, fix="see `%%finetune?` for what each key does")
    got = first.get("input")
    shown = f", not {_shown(got)}" if isinstance(got, str | int | float | bool) else ""
    field = _field_at(RunSpec, loc)
    example = (field.examples or [None])[0] if field is not None else None
    message = message[0].lower() + message[1:]
    fix = f"write for example `{loc[-1]}: {example}`" if example is not None else "see `%%finetune?`"
    if reason := why_not(loc, got):
        return SpecError(f"`{key}: {got}` is not there: {reason}", place=_place(loc, lines, name), fix=fix)
    return SpecError(f"`{key}`: {message}{shown}", place=_place(loc, lines, name), fix=fix)


def _shown(value: str | float) -> str:
    return repr(shortened(value)) if isinstance(value, str) else shortened(value)


def _field_at(kind: type[BaseModel], loc: tuple[Any, ...]) -> Any:
    field = None
    for part in loc:
        if not isinstance(part, str):
            continue
        field = kind.model_fields.get(part)
        if field is None:
            return None
        inner = _parts(field.annotation)
        if inner:
            kind = inner[0]
    return field
