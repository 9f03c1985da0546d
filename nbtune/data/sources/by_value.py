"""Rows that are handed over themselves, not by name: each gets a name in the spec, which stays plain, and a place among
the variables that are looked up.

`data` may be rows, a name, a source (a mapping such as ``{"source": "rows", "weight": 2}``), or a list of such. A list
of mappings is both, a list of rows and a list of sources; the keys decide: a mapping of nothing but a source's keys is
a source, any other is a row (so a dict of columns is a table only outside a list). What is half of each is refused.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from nbtune.data.sources.variables import is_rows, is_stream, is_table
from nbtune.errors import DataError, SpecError
from nbtune.spec import RunSpec, SourceSpec, from_mapping, from_yaml

_KEYS = frozenset(SourceSpec.model_fields)
_SPEAKER = ("role", "from")  # what each message of a conversation has one of
_SOURCES = {"name": "a name", "source": "a source", "rows": "a table of rows"}


def spec_with_named_rows(
    spec: RunSpec | Mapping[str, Any] | str | None,
    fields: Mapping[str, Any],
    variables: Mapping[str, Any] | None,
    first_line: int = 1,
) -> tuple[RunSpec, Mapping[str, Any]]:
    """Return the spec, in which rows that were handed over have names, and the variables that hold them.

    Args:
        spec: a `RunSpec`, a mapping, YAML text, or nothing but the fields.
        fields: what wins over it; see `name_rows`.
        variables: what names mean.
        first_line: the number of a text's first line in what the user sees.

    Raises:
        SpecError, DataError: as `from_mapping`, `from_yaml` and `name_rows`.
    """
    if isinstance(spec, str):
        body, named = name_rows(fields, variables, text=spec)
        return from_yaml(spec, body, first_line=first_line), named
    if isinstance(spec, RunSpec):
        if not fields:
            return spec, variables or {}
        spec = spec.model_dump(mode="python", exclude_unset=True)
    if spec is not None and not isinstance(spec, Mapping):
        raise SpecError(f"a value of type {type(spec).__name__} is no spec", fix="rows are given as data=…")
    body, named = name_rows({**(spec or {}), **fields}, variables)
    return from_mapping({key: body[key] for key in spec or {}}, {key: body[key] for key in fields}), named


def name_rows(
    fields: Mapping[str, Any], variables: Mapping[str, Any] | None = None, *, text: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields with a name wherever rows stood, and the variables with those rows under these names.

    Rows that are one of the variables get its name; others are called `rows` (`eval_rows` for ``eval.data``), with a
    number where that is a variable, or is named in the request, already.

    Args:
        fields: of a spec; `data` and ``eval.data`` (nested, or as a dotted key) may be, or hold, rows.
        variables: what names mean so far.
        text: a YAML text that the fields are put over; what it names keeps its meaning.

    Raises:
        DataError: something is neither rows nor a name of rows.
        SpecError: it is half a list of rows and half a list of sources, or half a row and half a source.
    """
    names = _Names(dict(variables or {}), {*re.findall(r"[\w.-]+", text), *_texts(fields)})
    named_fields = dict(fields)
    for key in ("data", "eval.data"):
        if named_fields.get(key) is not None:
            named_fields[key] = _named(named_fields[key], key, names)
    evaluation = named_fields.get("eval")
    if isinstance(evaluation, Mapping) and evaluation.get("data") is not None:
        named_fields["eval"] = {**evaluation, "data": _named(evaluation["data"], "eval.data", names)}
    return named_fields, names.variables


class _Names:
    """The variables, and the names that no more rows may get."""

    def __init__(self, variables: dict[str, Any], taken: Collection[str]) -> None:
        self.variables, self._taken = variables, taken
        self._known = {id(v): k for k, v in reversed(variables.items()) if not k.startswith("_") and is_rows(v)}

    def of(self, value: Any, key: str) -> str:
        """Return ``var:`` and the name of these rows."""
        name = self._known.get(id(value))
        if name is None:
            base = "eval_rows" if key.startswith("eval") else "rows"
            name, number = base, 1
            while name in self.variables or name in self._taken:
                number += 1
                name = f"{base}_{number}"
            self.variables[name] = value
            self._known[id(value)] = name
        return f"var:{name}"


def _texts(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of sources and functions in a request."""
    evaluation = fields.get("eval")
    places = [
        fields.get("data"),
        fields.get("eval.data"),
        evaluation.get("data") if isinstance(evaluation, Mapping) else None,
    ]
    for place in places:
        for entry in place if isinstance(place, list | tuple) else [place]:
            entry = entry.model_dump() if isinstance(entry, SourceSpec) else entry
            words = [entry.get("source"), entry.get("function")] if isinstance(entry, Mapping) else [entry]
            yield from (word.removeprefix("var:") for word in words if isinstance(word, str))


def _named(value: Any, key: str, names: _Names) -> Any:
    """Return what stands at `data` or ``eval.data``, with names instead of rows."""
    if isinstance(value, list | tuple):
        return _named_list(value, key, names)
    if isinstance(value, Mapping) and not _is_source(value) and not is_rows(value):
        if isinstance(value.get("source"), str):
            return dict(value)  # a source with a key that the spec refuses by name
        if _kind(value) == "half":
            raise _half(value, key)
        if value and all(map(is_rows, value.values())):
            names_of = [str(name) for name in value]
            cause = f"it is a dict of several sets of rows ({', '.join(names_of[:6])})"
            raise DataError(cause, place=key, fix=f'take one of them: data=…["{names_of[0]}"]')
        raise DataError(
            "it is a dict whose values are not all columns (lists)",
            place=key,
            fix='for one row write [{"prompt": "…", "completion": "…"}]; a source has a key `source`',
        )
    return _named_entry(value, key, key, names)


def _named_list(value: list[Any] | tuple[Any, ...], key: str, names: _Names) -> Any:
    if count := _texts_of_each(value):
        fix = 'say which is what: [{"prompt": q, "completion": a} for q, a in …]'
        if count != 2:
            fix = 'name them: [{"prompt": …, …} for … in …]; if each is a row of its own: data={"text": […]}'
        entries = "pairs of texts" if count == 2 else f"{count} texts each"
        raise DataError(f"its entries are {entries}, not rows", place=key, fix=fix)
    kinds = [_kind(entry) for entry in value]
    if "half" in kinds:
        number = kinds.index("half")
        raise _half(value[number], f"{key}[{number}]")
    if "row" not in kinds:
        if not kinds:
            raise DataError("it is an empty list", place=key, fix="give at least one row, or the name of rows")
        return [_named_entry(entry, f"{key}[{number}]", key, names) for number, entry in enumerate(value)]
    other = next((number for number, kind in enumerate(kinds) if kind in _SOURCES), None)
    if other is not None:
        raise SpecError(
            f"it is half a list of rows, half a list of sources: [{kinds.index('row')}] is a row, "
            f"[{other}] is {_SOURCES[kinds[other]]}",
            place=key,
            fix='put the rows into a list of their own: data=[[{"prompt": "…", …}], "more.jsonl"]',
        )
    if not is_rows(value):
        raise _no_rows(value[kinds.index("other")], f"{key}[{kinds.index('other')}]")
    return names.of(value, key)


def _texts_of_each(value: list[Any] | tuple[Any, ...]) -> int:
    """Return of how many texts each entry is, where these are questions with their answers and the like rather than
    several lists of texts: tuples, or several lists of as many; 0: they are something else."""
    several = [entry for entry in value if isinstance(entry, list | tuple) and not hasattr(entry, "_fields")]
    counts = {len(entry) for entry in several}
    if not several or len(several) < len(value) or len(counts) > 1:
        return 0
    if len(several) == 1 and isinstance(several[0], list):
        return 0
    [count] = counts
    return count if count > 1 and all(isinstance(text, str) for entry in several for text in entry) else 0


def _kind(entry: Any) -> str:
    """Return what an entry of a list is: a name, a source, rows, a row, half a source and half a row, or something
    other."""
    if isinstance(entry, str | os.PathLike):
        return "name"
    if type(entry) is not dict and (is_table(entry) or is_stream(entry)):
        return "rows"
    if isinstance(entry, Mapping):
        if _is_source(entry):
            return "source"
        return "half" if "source" in entry and not _KEYS.isdisjoint(entry.keys() - {"source"}) else "row"
    if isinstance(entry, list | tuple) and not hasattr(entry, "_fields"):
        spoken = entry and all(isinstance(m, Mapping) and any(k in m for k in _SPEAKER) for m in entry)
        return "row" if spoken else "rows"
    return "source" if isinstance(entry, SourceSpec) else "other"


def _is_source(entry: Mapping[Any, Any]) -> bool:
    """Return whether these are the keys of a source: no others, or others that can only be slips of the pen."""
    others = [key for key in entry if key not in _KEYS]
    if not others:
        return bool(entry)
    return "source" in entry and all(difflib.get_close_matches(str(key), _KEYS, 1, 0.8) for key in others)


def _named_entry(entry: Any, place: str, key: str, names: _Names) -> Any:
    """Return a name or a source as it stands; rows, also those of a source, under a name."""
    if isinstance(entry, str | SourceSpec):
        return entry
    if isinstance(entry, os.PathLike):
        return os.fspath(entry)
    if isinstance(entry, Mapping) and _is_source(entry):
        source = entry.get("source")
        return (
            dict(entry) if source is None else {**entry, "source": _named_entry(source, f"{place}.source", key, names)}
        )
    if isinstance(entry, list | tuple) and not entry:
        raise DataError("it is an empty list", place=place, fix="give at least one row")
    if hasattr(entry, "_fields") or not is_rows(entry):
        raise _no_rows(entry, place)
    return names.of(entry, key)


def _half(entry: Mapping[str, Any], place: str) -> SpecError:
    mine = ", ".join(f"`{key}`" for key in entry if key in _KEYS)
    others = ", ".join(f"`{key}`" for key in entry if key not in _KEYS)
    return SpecError(
        f"it is half a source ({mine}) and half a row ({others})",
        place=place,
        fix='drop the latter; if these are columns of rows, write data={"source": [{…}, …]}, or give a DataFrame',
    )


def _no_rows(value: Any, place: str) -> DataError:
    fix = "give a list of dicts, a dict of columns, a DataFrame, a datasets.Dataset, an iterator of dicts, or a name"
    if hasattr(value, "_fields"):
        fix = "of named tuples: data=[row._asdict() for row in …]"
    elif getattr(value, "ndim", 0) == 1:
        fix = 'say what it holds: data={"text": …}, or with another column: data={"prompt": …, "completion": …}'
    if callable(value):
        fix = "of functions, those with `yield` that want no arguments give rows; or call it"
    return DataError(f"a value of type {type(value).__name__} is not rows", place=place, fix=fix)
