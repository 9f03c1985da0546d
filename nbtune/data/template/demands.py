"""What the operators, methods, filters and tests of a template ask for before they make it, in bytes.

A few lists within lists can be a text of any length once they are written out, compared or sorted: what is done with
them asks for all that is in them, as often as it is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, Protocol

import jinja2
from jinja2.utils import Namespace

from nbtune.data.template.tracked_str import Tracked, size

_OBJECT, _PLACE = 64, 8  # bytes: of any value, of its place in a list
_PIECE = 200  # bytes of a short text that remembers where it came from
_MOST_BITS = 1 << 14  # of a number
_SPACES = tuple(filter(str.isspace, map(chr, range(0x3001))))
_BREAKS = tuple(one for one in _SPACES if len(f"a{one}a".splitlines()) > 1)
_WIDE = ("center", "ljust", "rjust", "zfill", "expandtabs")
_FORMAT = re.compile(r"\d{6}|\*")
_WITHIN = re.compile(r":[^{}]*\{")  # a width that is another value
CONTAINERS = (list, tuple, Mapping, set, frozenset, Namespace)
# Filters that look at no value within another, and write none out.
_SHALLOW = frozenset(
    (
        *("attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random"),
        *("reject", "rejectattr", "reverse", "select", "selectattr", "slice"),
        *("callable", "defined", "iterable", "mapping", "none", "sameas", "sequence", "string", "undefined"),
    )
)
# And those that make no more of a text than it was.
_LIGHT = frozenset(
    (
        *("abs", "capitalize", "count", "d", "default", "first", "float", "format", "int", "join", "last", "length"),
        *("lower", "replace", "safe", "string", "tojson", "trim", "upper"),
        *("==", "defined", "eq", "equalto", "in", "mapping", "ne", "none", "sequence", "undefined"),
    )
)
_MOST_OF_LETTER = 32  # bytes that another filter makes of one: urlencode, wordwrap, xmlattr, title


class DataDict(dict):  # type: ignore[type-arg]
    """A mapping of the data, with the message that it belongs to."""

    __slots__ = ("_tag",)


class Asked(Protocol):
    """What is left to a rendering: it refuses what is more."""

    def make(self, count: int) -> None: ...
    def expand(self, value: Any) -> Any: ...


class TemplateLimit(jinja2.exceptions.SecurityError):
    """A template does more than any needs to."""


def weight(value: Any, most: int) -> int:
    """Return some bytes of a value with all that is in it, as often as it is there; more than `most`: no more."""
    total, waiting = 0, [iter((value,))]
    while waiting:
        for each in waiting[-1]:
            kind = type(each)
            total += _OBJECT + (size(each) if kind is str or kind is Tracked else _deep(each, waiting))
            if total > most:
                return total
            if kind is not str and kind is not Tracked and isinstance(each, CONTAINERS):
                break
        else:
            waiting.pop()
    return total


def _deep(value: Any, waiting: list[Iterator[Any]]) -> int:
    """Return the bytes of a value that is no plain text; what is in it waits."""
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, Mapping):
        waiting.append(iter(each for pair in value.items() for each in pair))
    elif isinstance(value, CONTAINERS):
        waiting.append(iter(value))
    elif isinstance(value, int):
        return value.bit_length()
    return size(value) if isinstance(value, str) else 0


def check_operation(budget: Asked, operation: str, left: Any, right: Any) -> None:
    """Ask for what an operator makes.

    Raises:
        TemplateLimit: it is too much.
    """
    numbers = isinstance(left, int) and isinstance(right, int)
    if operation == "%":
        if isinstance(left, str):
            if _FORMAT.search(left):
                raise TemplateLimit("it asks for a text of great width")
            budget.make(size(left))
            for value in right.values() if isinstance(right, Mapping) else right if type(right) is tuple else [right]:
                budget.expand(value)
                budget.make(size(value) * (left.count("%") if isinstance(right, Mapping) else 1))
    elif operation == "*":
        if numbers:
            _check_digits(left.bit_length() + right.bit_length())
        elif isinstance(left, int) or isinstance(right, int):
            times = left if isinstance(left, int) else right
            budget.make(max(0, times) * (size(left) + size(right)))
    elif numbers:
        _check_digits(left.bit_length() * abs(right))


def _check_digits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TemplateLimit("it makes a number of too many digits")


def check_method(budget: Asked, owner: Any, name: str, args: tuple[Any, ...]) -> None:
    """Ask for what a method of a value makes.

    Raises:
        TemplateLimit: it is too much.
    """
    for each in args:
        if isinstance(each, CONTAINERS):
            budget.expand(each)
    if not isinstance(owner, str):
        return
    budget.make(size(owner))
    if name in _WIDE:
        width = max((each for each in args if isinstance(each, int)), default=0)
        budget.make(width * (owner.count("\t") if name == "expandtabs" else 1))
    elif name in ("format", "format_map"):
        values = [inner for each in args for inner in (each.values() if isinstance(each, Mapping) else [each])]
        great = any(isinstance(each, int) and each > 99_999 for each in values)
        if _FORMAT.search(owner) or (great and _WITHIN.search(owner)):
            raise TemplateLimit("it asks for a text of great width")
        for value in values:
            budget.expand(value)
            budget.make(size(value) * owner.count("{"))
    elif name == "replace" and len(args) > 1 and isinstance(args[0], str):
        budget.make(owner.count(args[0]) * size(args[1]))
    elif name == "join" and args and isinstance(args[0], list | tuple):
        budget.make(size(owner) * len(args[0]) + sum(map(size, args[0])))
    elif name in ("split", "rsplit", "splitlines"):
        seen = args[0] if args and isinstance(args[0], str) and args[0] else None
        ends = [seen] if seen else _SPACES if name != "splitlines" else _BREAKS
        budget.make(_PIECE * sum(map(owner.count, ends)))
    elif name in ("encode", "translate"):
        budget.make(_MOST_OF_LETTER * len(owner) + sum(map(_longest, args)) * len(owner))


def _longest(table: Any) -> int:
    return max(map(size, table.values()), default=0) if isinstance(table, Mapping) else 0


def asked_first(budget: Asked, name: str, made_by: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter, or a test, that asks for what it makes, before and after."""

    @wraps(made_by)  # also what jinja2 wrote on it: whether it wants the context
    def asking(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        for each in given:
            if isinstance(each, str):
                budget.make(size(each) * (1 if name in _LIGHT else _MOST_OF_LETTER))
            elif name not in _SHALLOW and isinstance(each, CONTAINERS):
                budget.expand(each)
                if name == "xmlattr":
                    budget.make(_MOST_OF_LETTER * weight(each, 1 << 30))
        if name in ("batch", "slice"):
            budget.make(_PLACE * max((each for each in given if isinstance(each, int)), default=0))
        elif name in ("center", "replace"):
            at = next((i for i, each in enumerate(args) if isinstance(each, str)), None)
            if at is not None:
                check_method(budget, args[at], name, (*args[at + 1 :], *kwargs.values()))
        value = made_by(*args, **kwargs)
        budget.make(_OBJECT * len(value) if name == "list" else size(value))
        return value

    return asking
