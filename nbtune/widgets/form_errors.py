"""What is wrong with a form: which field it is about, and what would mend it, to be applied by a click."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nbtune.errors import DataError, HubError, NbtuneError
from nbtune.widgets.sanitize import clean

_NAMED = re.compile(r"`([a-z_]+(?:\.[a-z_]+)?)(?:: ([\w.-]+))?`")
_FIRST = re.compile(r"`([\w.]+)")
_IN_ROWS = re.compile(r"line \d+ of the YAML \((.*, (?:line|row) \d+.*)\)$")
_OF_A_ROW = re.compile(r", (?:line|row) \d+$")
_MOST = 3
_KEPT = ("model", "data")


def described(
    error: BaseException,
    values: Mapping[str, Any],
    known: Mapping[str, str],
    works: Callable[[Mapping[str, Any]], bool] | None = None,
) -> dict[str, Any]:
    """Return JSON of an error: cause, place, fix, the `key` of the field that it is about, and `changes` that mend it.

    Args:
        error: what went wrong.
        values: the form's, by dotted key.
        known: each dotted key with its title.
        works: whether values make a valid spec; None: it is not the spec that is wrong.
    """
    if not isinstance(error, NbtuneError):
        return {
            "cause": clean(f"{type(error).__name__}: {error}", 600),
            "place": "",
            "fix": "",
            "key": "",
            "changes": [],
        }
    changes = _leaving_out(values, works) if works is not None else _as_said(error.fix, values, known)
    place = _IN_ROWS.sub(r"\1", error.place)  # who clicks has seen no YAML
    description = {"cause": clean(error.cause, 600), "place": clean(place, 200), "fix": clean(error.fix, 600)}
    if works is not None:  # it is said beside its field, and a button says the same as the advice
        description |= {"place": ""} | ({"fix": ""} if changes else {})
    if isinstance(error, DataError) and _OF_A_ROW.search(place) and values.get("on_error") != "skip":
        changes.append({"rows": "skip", "values": {"on_error": "skip"}})
    return {**description, "key": _key(error, known, values), "changes": changes[:_MOST]}


def unusual(warnings: Iterable[str], known: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return JSON of a plan's values that are far from usual: what is said, the `key` of the field, and whether that
    field holds nothing else, so that it may be left out."""
    found = []
    for said in warnings:
        named = _FIRST.match(said)
        whole = parts = named[1] if named else ""
        while parts and parts not in known:
            parts = parts.rpartition(".")[0]
        found.append({"said": clean(said, 600), "key": parts, "alone": parts == whole != ""})
    return found


def _key(error: NbtuneError, known: Mapping[str, str], values: Mapping[str, Any]) -> str:
    keys = [str(key) for key in error.keys]
    if keys and (keys[0] == "data" or isinstance(error, DataError)):
        return "data"
    for depth in (2, 1):
        if ".".join(keys[:depth]) in known:
            return ".".join(keys[:depth])
    named = [name for name, _ in _NAMED.findall(error.cause) if name in known]
    if named:
        return named[0]
    if (model := str(values.get("model") or "")) and error.cause.startswith(model):
        return "model"
    return "data" if isinstance(error, DataError) else "model" if isinstance(error, HubError) else ""


def _leaving_out(values: Mapping[str, Any], works: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
    """Return the fields of which one, left out, makes the rest a valid spec."""
    kept = {key: value for key, value in values.items() if value not in (None, "")}
    least = [key for key in kept if key not in _KEPT and works({k: v for k, v in kept.items() if k != key})]
    return [{"leave": key, "values": {key: None}} for key in least]


def _as_said(fix: str, values: Mapping[str, Any], known: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what an error's advice says to write, ``adapter: qlora``, or to leave out."""
    found: list[dict[str, Any]] = []
    for name, value in _NAMED.findall(fix):
        key = f"{name}.type" if f"{name}.type" in known and value else name
        if key not in known or key in _KEPT:
            continue
        if value:
            found.append({"write": key, "values": {key: value}})
        elif values.get(key) not in (None, "") and "leave" in fix:
            found.append({"leave": key, "values": {key: None}})
    return found
