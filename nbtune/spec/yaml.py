"""A spec from YAML or a mapping, with line numbers: a cell's body and a file are the same text.

A key with nothing behind it counts as unset. Nothing is templated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from nbtune.errors import NbtuneError, SpecError
from nbtune.spec.familiar_names import advice, parts_of, path_of, put, rename, value_of, why_not
from nbtune.spec.model import RunSpec
from nbtune.spec.value_advice import flow, in_words, instead, instead_of_an_item, shown
from nbtune.spec.yaml_advice import slip_in, slip_of
from nbtune.spec.yaml_loader import BadYaml, Forbidden, compose, construct
from nbtune.untrusted import shortened

HELP = "`help(nbtune.finetune)`, in a notebook `%%finetune?`, says what each key does"

_WAY_OUT = re.compile(r"(.*?): ((?:change|drop|keep|leave|name|set|take|use|write)\b.*)", re.DOTALL)


def from_yaml(
    text: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    name: str = "the cell",
    first_line: int = 1,
    files: bool = True,
) -> RunSpec:
    """Return the spec that a YAML text asks for.

    >>> nbtune.spec.from_yaml("data: rows\\nadapter: {r: 8}").adapter.r
    8

    Args:
        text: the body of a cell, or a file's content.
        overrides: dotted keys (``"adapter.r"``) with values that win over the text.
        name: how errors call the text.
        first_line: the number of its first line in what the user sees (2 in a cell with its magic on line 1).
        files: a key may name a file that is read (DeepSpeed's config); not where a stranger may have written the text.
    Raises:
        SpecError: with the line, what was wrong, and what to write instead.
    """
    body, lines = _load(text, name, first_line)
    return from_mapping(body, overrides, lines=lines, name=name, files=files)


def from_mapping(
    body: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    lines: Mapping[tuple[Any, ...], int] | None = None,
    name: str = "the spec",
    files: bool = True,
) -> RunSpec:
    """Return the spec of a mapping; `overrides` and `files` are as in `from_yaml`, and `lines` gives the line of a path
    of keys.

    >>> nbtune.spec.from_mapping({"data": "rows", "steps": 3}, {"steps": 5}).steps
    5

    Raises:
        SpecError: as `from_yaml`.
    """
    body, lines = rename(body, lines or {}, files=files)
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
        raise _not_yaml(error, text, name, first_line) from None
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise _no_keys(node, text, name, first_line)
    lines: dict[tuple[Any, ...], int] = {}
    _note_lines(node, (), first_line, lines, name)
    try:
        return construct(node), lines
    except BadYaml as error:
        raise _not_yaml(error, text, name, first_line) from None


def _no_keys(node: yaml.Node, text: str, name: str, first_line: int) -> SpecError:
    cause = "the body must be `key: value` lines"
    if (slip := slip_in(text)) is not None:
        return SpecError(f"{cause}: {slip.cause}", place=_line(slip.line, name, first_line), fix=slip.fix)
    dashes = isinstance(node, yaml.SequenceNode)
    fix = f"write for example `data: rows`{', without a dash' if dashes else ''}"
    return SpecError(cause, place=_line(node.start_mark.line + 1, name, first_line), fix=fix)


def _not_yaml(error: BadYaml, text: str, name: str, first_line: int) -> SpecError:
    if isinstance(error, Forbidden):
        problem = f"{error.problem} (column {error.column})" if error.line else error.problem
        place = _line(error.line, name, first_line)
        return SpecError(f"this is not YAML that nbtune reads: {problem}", place=place, fix="use plain keys and values")
    slip = slip_of(text, error)
    return SpecError(f"this is not YAML: {slip.cause}", place=_line(slip.line, name, first_line), fix=slip.fix)


def _line(number: int, name: str, first_line: int) -> str:
    return f"line {number - 1 + first_line} of {name}" if number else name


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
            fix = advice(shortened(str(key)), kind, value, body)
            raise _unknown(str(key), (*path, key), lines, name, fix)
        for inner in parts_of(field.annotation):
            if isinstance(value, Mapping):
                _refuse_unknown(value, inner, (*path, key), lines, name)
            elif isinstance(value, list | tuple):
                for index, entry in enumerate(value):
                    if isinstance(entry, Mapping):
                        _refuse_unknown(entry, inner, (*path, key, index), lines, name)


def _unknown(key: str, path: tuple[Any, ...], lines: Mapping[tuple[Any, ...], int], name: str, fix: str) -> SpecError:
    above = _as_written(path[:-1], lines) if len(path) > 1 else ()
    inside = f" in `{shortened('.'.join(str(part) for part in above))}`" if above else ""
    return SpecError(f"there is no key `{shortened(key)}`{inside}", place=_place(path, lines, name), fix=fix)


def _place(path: tuple[Any, ...], lines: Mapping[tuple[Any, ...], int], name: str) -> str:
    while path and path not in lines:
        path = path[:-1]
    return f"line {lines[path]} of {name}" if path in lines and lines else name


def _explain(error: ValidationError, lines: Mapping[tuple[Any, ...], int], name: str) -> SpecError:
    errors = error.errors()
    first = errors[0]
    loc = _loc(first)
    if not loc:
        return _contradiction(shortened(in_words([first]), 300), lines, name)
    key = shortened(".".join(str(part) for part in _as_written(loc, lines)))
    message = shortened(in_words([each for each in errors if _loc(each) == loc]), 300)
    got = first.get("input")
    if first["type"] == "value_error" and isinstance(got, Mapping):  # of keys inside, not of what the key takes
        return _contradiction(message, lines, name, within=loc, fix=_fix(loc, first, lines))
    if first["type"] == "missing":
        cause = f"`{key}` is missing"
    elif reason := why_not(loc, got):
        cause = f"`{key}: {got}` is not there: {reason}"
    else:
        ours = first["type"] == "value_error" and isinstance(got, list | tuple)  # a list it may be, and not this one
        not_this = "" if ours else shortened(shown(got))
        cause = f"`{key}`: {message}{f', not {not_this}' if not_this else ''}"
    return SpecError(cause, place=_place(loc, lines, name), fix=_fix(loc, first, lines))


def _loc(error: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return where pydantic found fault: a path of keys, without the forms that it tried there."""
    names = [part for part in error["loc"] if not (isinstance(part, str) and part not in _KEYS)]
    return tuple(names)


def _fix(loc: tuple[Any, ...], error: Mapping[str, Any], lines: Mapping[tuple[Any, ...], int]) -> str:
    """Return what to write: what was meant, where that can be told, else the key's example."""
    got = error.get("input")
    key = next(part for part in reversed(loc) if isinstance(part, str))
    field = _field_at(RunSpec, loc)
    found = None
    if isinstance(loc[-1], int):
        found = instead_of_an_item(key, got, error)
    elif field is not None:
        short = loc not in lines and loc[:-1] in lines  # `adapter: qlora`
        found = instead(
            str(loc[-2]) if short and len(loc) > 1 else key, got, error, next(iter(parts_of(field.annotation)), None)
        )
    if found is not None:
        return shortened(found, 200)
    example = (field.examples or [None])[0] if field is not None else None
    return f"write for example `{key}: {flow(example)}`" if example is not None else HELP


def _contradiction(
    message: str,
    lines: Mapping[tuple[Any, ...], int],
    name: str,
    *,
    within: tuple[Any, ...] = (),
    fix: str = HELP,
) -> SpecError:
    """Return the error of keys that do not go together, whose words end with what to do.

    Args:
        within: the part whose keys they are.
        fix: what is said where the words do not end so.
    """
    paths = [(*within, word) for word in re.findall(r"[a-z_]{2,}", message)]
    named = [path for path in paths if path in lines]
    place = _place(named[-1] if named else within, lines, name)
    if found := _WAY_OUT.match(message):
        cause, fix = found.groups()
        return SpecError(cause, place=place, fix=fix)
    part = shortened(".".join(map(str, within)))
    return SpecError(f"`{part}`: {message}" if part and f"`{part}" not in message else message, place=place, fix=fix)


def _field_at(kind: type[BaseModel], loc: tuple[Any, ...]) -> Any:
    field = None
    for part in loc:
        if not isinstance(part, str):
            continue
        field = kind.model_fields.get(part)
        if field is None:
            return None
        inner = parts_of(field.annotation)
        if inner:
            kind = inner[0]
    return field


def _names_of(kind: type[BaseModel]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield name
        for inner in parts_of(field.annotation):
            yield from _names_of(inner)


_KEYS = frozenset(_names_of(RunSpec))
