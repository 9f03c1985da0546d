"""What a chat template does with what is said, watched once so that it need not be done again for every row.

A template is run on `Watched` strings: `str`s that stand for a message's text and write down what is asked of them.
Joining and stripping them makes new ones; a question with a yes or no (``'</think>' in content``) is answered for the
row at hand and kept as a `Guard`; anything else ends the attempt (`Untraceable`). What is left is a `Trace`: the
template's own words with places for the texts between them, right for every row of the same shape that answers the
guards the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
from jinja2.nodes import Compare, Const, Mod

from nbtune.data.template.environment import make_environment, with_reasoning

__all__ = ["Guard", "Leaf", "Trace", "Untraceable", "watch"]

_NONCE = "\U0010fffd"


class Untraceable(Exception):
    """The template looks at a text in a way that cannot be written down."""


class Leaf(NamedTuple):
    """A text of a row: of which message, under which key, stripped how (a method of `str`, or "")."""

    message: int
    key: str
    strip: str = ""
    chars: str | None = None

    def of(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text in a row."""
        text: str = messages[self.message][self.key]
        return getattr(text, self.strip)(self.chars) if self.strip else text


class Guard(NamedTuple):
    """A question about a text and its answer."""

    leaf: Leaf
    method: str
    args: tuple[Any, ...]
    answer: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """fixed[0] leaf[0] fixed[1] … leaf[n-1] fixed[n], where the guards hold."""

    fixed: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    guards: tuple[Guard, ...]


@dataclass(slots=True)
class _Watcher:
    messages: Sequence[Mapping[str, Any]]
    guards: list[Guard] = field(default_factory=list)
    given_up: bool = False  # some tests of Jinja swallow exceptions

    def give_up(self) -> Untraceable:
        self.given_up = True
        return Untraceable()

    def ask(self, parts: tuple[Any, ...], method: str, args: tuple[Any, ...]) -> bool:
        if len(parts) != 1 or any(type(a) is Watched for a in args):
            raise self.give_up()
        leaf = parts[0]
        text = leaf.of(self.messages)
        answer = bool(text) if method == "__bool__" else getattr(text, method)(*args)
        if type(answer) is not bool:
            raise self.give_up()
        self.guards.append(Guard(leaf, method, args, answer))
        return answer


class Watched(str):
    """Texts and the template's words, in order; its characters as a `str` mean nothing."""

    __slots__ = ("_parts", "_watcher")
    _parts: tuple[Any, ...]
    _watcher: _Watcher

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return _joined((self, other), self._watcher)

    def __radd__(self, other: str) -> str:
        return _joined((other, self), self._watcher)

    def __bool__(self) -> bool:
        if any(type(part) is str for part in self._parts):
            return True
        return self._watcher.ask(self._parts, "__bool__", ())

    def __contains__(self, item: object) -> bool:
        return self._watcher.ask(self._parts, "__contains__", (item,))

    def __eq__(self, other: object) -> bool:
        return self._watcher.ask(self._parts, "__eq__", (other,)) if isinstance(other, str) else False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        raise self._watcher.give_up()

    def __iter__(self) -> Iterator[str]:
        watcher = self._watcher

        def refuse() -> Iterator[str]:  # `is iterable` may ask for the iterator, nobody may look into it
            raise watcher.give_up()
            yield ""

        return refuse()

    def startswith(self, *args: Any) -> bool:
        return self._watcher.ask(self._parts, "startswith", args)

    def endswith(self, *args: Any) -> bool:
        return self._watcher.ask(self._parts, "endswith", args)

    def strip(self, chars: str | None = None, /) -> str:
        return self._stripped("strip", chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._stripped("lstrip", chars)

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._stripped("rstrip", chars)

    def _stripped(self, method: str, chars: str | None) -> str:
        if len(self._parts) != 1 or type(chars) is Watched:
            raise self._watcher.give_up()
        leaf: Leaf = self._parts[0]
        if leaf.strip not in ("", method) or (leaf.strip and leaf.chars != chars):
            raise self._watcher.give_up()
        return _make((leaf._replace(strip=method, chars=chars),), self._watcher)


_SAFE = {"__class__", "__new__", "__init__", "__init_subclass__", "__subclasshook__", "__getattribute__", "__setattr__"}
_SAFE |= {"__delattr__", "__doc__", "__dir__", "__getstate__", "__reduce__", "__reduce_ex__", *vars(Watched)}


def _refusing(name: str) -> Any:
    def refuse(self: Watched, *args: Any, **kwargs: Any) -> Any:
        raise self._watcher.give_up()

    refuse.__name__ = name
    return refuse


for _name in (set(dir(str)) | {"__rmod__"}) - _SAFE:
    setattr(Watched, _name, _refusing(_name))


def _make(parts: tuple[Any, ...], watcher: _Watcher) -> str:
    made = str.__new__(Watched, _NONCE)
    made._parts, made._watcher = parts, watcher
    return made


def _joined(texts: Iterable[str], watcher: _Watcher) -> str:
    """The texts in a row; `str` parts that touch become one."""
    parts: list[Any] = []
    for text in texts:
        if not isinstance(text, str):
            raise watcher.give_up()
        for part in text._parts if type(text) is Watched else (text,):
            if type(part) is Leaf:
                parts.append(part)
            elif part:
                if _NONCE in part:
                    raise watcher.give_up()
                if parts and type(parts[-1]) is str:
                    parts[-1] += part
                else:
                    parts.append(str(part))
    return _make(tuple(parts), watcher)


def _concat(texts: Iterable[str]) -> str:
    texts = list(texts)
    watched = next((t for t in texts if type(t) is Watched), None)
    return "".join(texts) if watched is None else _joined(texts, watched._watcher)


def _holds_watched(value: Any) -> _Watcher | None:
    if type(value) is Watched:
        return value._watcher
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((found for v in inner if (found := _holds_watched(v)) is not None), None)


def _blind(function: Any) -> Any:
    """A filter that must not see watched texts: it would read characters that mean nothing."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        watcher = _holds_watched([*args, kwargs])
        if watcher is not None:
            raise watcher.give_up()
        return function(*args, **kwargs)

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, mark):
            setattr(guarded, mark, getattr(function, mark))
    return guarded


def _trim(value: Any, chars: str | None = None) -> Any:
    return value.strip(chars) if isinstance(value, str) else str(value).strip(chars)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template | None:
    environment = make_environment(_concat, lambda text: text)
    tree = environment.parse(template)
    for node in tree.find_all((Mod, Compare)):
        if isinstance(node, Mod) and not all(isinstance(side, Const) for side in (node.left, node.right)):
            if not isinstance(node.right, Const):  # "%s" % text
                return None
        elif isinstance(node, Compare):
            for operand in node.ops:  # a text looked for in other words: C code would compare the stand-in
                if (
                    operand.op in ("in", "notin")
                    and isinstance(operand.expr, Const)
                    and not isinstance(node.expr, Const)
                ):
                    return None
    kept = {"trim": _trim, "string": environment.filters["string"]}
    passed = (
        "default",
        "d",
        "selectattr",
        "rejectattr",
        "list",
        "first",
        "last",
        "length",
        "count",
        "items",
        "reverse",
    )
    environment.filters.update({name: _blind(f) for name, f in environment.filters.items() if name not in passed})
    environment.filters.update(kept)
    return environment.from_string(template)


def watch(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> Trace | None:
    """The trace of a rendering; None if the template looks closer at the texts than can be written down.

    Args:
        messages: `role` and texts; what else they hold must be the same in every row that the trace is used for.
        variables: as for `rendering.render`.
    """
    compiled = _compile(template)
    if compiled is None:
        return None
    watcher = _Watcher(messages)
    chat = [_watched(message, i, watcher) for i, message in enumerate(messages)]
    try:
        made = compiled.render(messages=chat, tools=None, documents=None, add_generation_prompt=False, **variables)
    except (Untraceable, jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError):
        return None
    if watcher.given_up or type(made) is not Watched:
        return None
    fixed, leaves = [""], []
    for part in made._parts:
        if type(part) is Leaf:
            leaves.append(part)
            fixed.append("")
        else:
            fixed[-1] += part
    return Trace(tuple(fixed), tuple(leaves), tuple(dict.fromkeys(watcher.guards)))


def _watched(message: Mapping[str, Any], number: int, watcher: _Watcher) -> dict[str, Any]:
    chat = {
        key: _make((Leaf(number, key),), watcher) if key != "role" and isinstance(value, str) else value
        for key, value in message.items()
        if value is not None
    }
    return with_reasoning(chat)
