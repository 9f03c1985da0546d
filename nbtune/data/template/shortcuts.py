"""Rows rendered without running the template: by what was watched of it on a row of the same shape.

A shape is the roles and keys of a conversation. The second row of a shape is watched (`template.watching`); what
comes of it is compared with the true rendering of this row, and of the row with other texts, before it is used. A row
that answers a guard differently, or has an empty text, is rendered in the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbtune.data.template.tracked_str import Span
from nbtune.data.template.watching import Guard, Leaf, Trace, watch
from nbtune.errors import DataError

__all__ = ["Rendered", "Shortcuts"]

_Messages = Sequence[Mapping[str, Any]]
_SHAPES, _PER_SHAPE, _TRIES = 4096, 8, 3


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: what is encoded.
        spans: (start, end, message) of the characters that came from the data.
        trained: (start, end, message) of the stretches with a loss, in characters.
        unended: numbers of assistant messages behind which no terminator stands.
    """

    text: str
    spans: tuple[Span, ...]
    trained: tuple[Span, ...]
    unended: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Shortcut:
    """A trace, and where what is trained begins and ends: (fixed piece, characters into it)."""

    fixed: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    guards: tuple[Guard, ...]
    trained: tuple[tuple[tuple[int, int], tuple[int, int], int], ...]
    unended: tuple[int, ...]

    def render(self, messages: _Messages) -> Rendered | None:
        for leaf, method, args, answer in self.guards:
            text = leaf.of(messages)
            if (bool(text) if method == "__bool__" else getattr(text, method)(*args)) is not answer:
                return None
        pieces = [self.fixed[0]]
        at = len(pieces[0])
        starts, spans = [0], []
        for leaf, fixed in zip(self.leaves, self.fixed[1:], strict=True):
            text = messages[leaf.message][leaf.key]
            if leaf.strip:
                text = getattr(text, leaf.strip)(leaf.chars)
            if not text:
                return None
            end = at + len(text)
            spans.append((at, end, leaf.message))
            starts.append(end)
            pieces.append(text)
            pieces.append(fixed)
            at = end + len(fixed)
        trained = tuple([(starts[a] + i, starts[b] + j, tag) for (a, i), (b, j), tag in self.trained])
        return Rendered("".join(pieces), tuple(spans), trained, self.unended)


@dataclass(slots=True)
class _Shape:
    seen: int = 0
    failed: int = 0
    found: list[_Shortcut] = field(default_factory=list)


class Shortcuts:
    """Short ways through one template.

    Args:
        template: its text; `variables` are those it is rendered with.
        render: the long way.
        clean: whether a rendering's texts are free of what looks like control tokens; only such rows are watched.
        ending: what is appended where the last message is the assistant's.
    """

    def __init__(
        self,
        template: str,
        variables: Mapping[str, Any],
        render: Callable[[_Messages], Rendered],
        clean: Callable[[Rendered], bool],
        ending: str = "",
    ) -> None:
        self._template, self._variables, self._ending = template, variables, ending
        self._render, self._clean = render, clean
        self._shapes: dict[Any, _Shape] = {}

    def render(self, messages: _Messages) -> Rendered:
        """The conversation, by the shortest way that is known.

        Raises:
            DataError: as the long way.
        """
        key = _shape_of(messages)
        if key is None:
            return self._render(messages)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) < _SHAPES:
                self._shapes[key] = _Shape(1)
            return self._render(messages)
        for shortcut in shape.found:
            made = shortcut.render(messages)
            if made is not None:
                return made
        made = self._render(messages)
        if shape.failed < _TRIES and len(shape.found) < _PER_SHAPE and self._clean(made):
            learnt = self._learn(messages, made)
            if learnt is None:
                shape.failed += 1
            else:
                shape.found.append(learnt)
        return made

    def _learn(self, messages: _Messages, rendered: Rendered) -> _Shortcut | None:
        trace = watch(self._template, messages, **self._variables)
        if trace is None:
            return None
        if self._ending and messages[-1]["role"] == "assistant":
            trace = Trace((*trace.fixed[:-1], trace.fixed[-1] + self._ending), trace.leaves, trace.guards)
        shortcut = _placed(trace, messages, rendered)
        if shortcut is None or shortcut.render(messages) != rendered:
            return None
        others = [{k: _other(v) if k != "role" else v for k, v in message.items()} for message in messages]
        try:
            made = shortcut.render(others)
            return shortcut if made is None or made == self._render(others) else None
        except DataError:
            return None


def _shape_of(messages: _Messages) -> Any:
    """What must be the same for a shortcut; None where a message holds more than texts and plain values."""
    shape: list[Any] = []
    for message in messages:
        if len(message) == 2 and type(message.get("content")) is str:
            shape.append(message["role"])
            continue
        keys = []
        for key, value in message.items():
            if key == "role":
                continue
            if type(value) is str:
                keys.append((key, str))
            elif value is None or type(value) in (bool, int):
                keys.append((key, value))
            else:
                return None
        shape.append((message["role"], tuple(keys)))
    return tuple(shape)


def _other(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    middle = len(value) // 2
    return f"{value[:middle]}q~ 7{value[middle:]}"


def _placed(trace: Trace, messages: _Messages, rendered: Rendered) -> _Shortcut | None:
    """The trace with the trained stretches of a rendering of it; None if one begins or ends inside a text."""
    bounds, at = [], 0
    for number, fixed in enumerate(trace.fixed):
        bounds.append((at, at + len(fixed)))
        at += len(fixed)
        if number < len(trace.leaves):
            at += len(trace.leaves[number].of(messages))

    def place(position: int) -> tuple[int, int] | None:
        return next(((k, position - low) for k, (low, high) in enumerate(bounds) if low <= position <= high), None)

    trained = []
    for start, end, tag in rendered.trained:
        first, last = place(start), place(end)
        if first is None or last is None:
            return None
        trained.append((first, last, tag))
    return _Shortcut(trace.fixed, trace.leaves, trace.guards, tuple(trained), rendered.unended)
