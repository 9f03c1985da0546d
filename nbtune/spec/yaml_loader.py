"""The one reader of YAML that a stranger can write: cells, a folder's spec.yaml, the heads of cards.

It reads the core schema of YAML 1.2 (``017`` is 17, ``1:30`` and ``yes`` are texts), and numbers as people mean them:
``2e-5`` and ``1_000``, too. Anchors, aliases and tags are refused, and size, depth and digits are bounded, so that no
text takes longer or more memory than its length allows. What is wrong is a `BadYaml` with line and column.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from nbtune.untrusted import open_file, shortened

LARGEST = 1 << 19  # characters; the reader takes some seconds for them
MOST = 100_000  # values and keys; likewise
DEEPEST = 32  # lists and mappings inside each other; a spec has four
_LONGEST_NUMBER = 50  # characters
_LARGEST_CARD = 1 << 20  # bytes of somebody else's card that are read
_HEAD = re.compile(r"\s*---[ \t]*\r?\n(.*?\n|)---[ \t]*(?:\r?\n|$)", re.DOTALL)
_TAG = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"^[-+]?(?:[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+)$")
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_FLOAT = re.compile(
    rf"^(?:[-+]?(?:(?:{_DIGITS})\.(?:{_DIGITS})?(?:[eE][-+]?[0-9]+)?|\.{_DIGITS}(?:[eE][-+]?[0-9]+)?"
    rf"|{_DIGITS}[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN))$"
)
NUMBERS = ((_TAG + "int", _WHOLE, "-+0123456789"), (_TAG + "float", _FLOAT, "-+.0123456789"))  # with first characters


class BadYaml(ValueError):
    """What is wrong with a text, in a sentence.

    Args:
        problem: it.
        line, column: where, from 1 on; 0: nowhere in particular.

    `context` is what the reader was about, `began` the line on which that began; "", 0: nothing.
    """

    def __init__(self, problem: str, line: int = 0, column: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.line, self.column = shortened(problem), line, column
        self.context, self.began = "", 0

    def __str__(self) -> str:
        return f"{self.problem} (line {self.line}, column {self.column})" if self.line else self.problem

    @classmethod
    def at(cls, mark: yaml.Mark | None, problem: str) -> BadYaml:
        """Return one with a place as the YAML library has it."""
        return cls(problem, mark.line + 1, mark.column + 1) if mark is not None else cls(problem)


class Forbidden(BadYaml):
    """It is YAML, but none that is read here."""


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, anchors and tags, of bounded depth."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0

    def scan_plain(self) -> Any:
        """Take a question mark in ``[Who are you?]`` for what it is: this library's reader ends the text before it, and
        then finds no comma (YAML 1.2, 7.3.3: inside a text it is a character like others)."""
        token: Any = super().scan_plain()  # type: ignore[no-untyped-call]
        text, end = token.value, token.end_mark
        while self.flow_level and end.index == self.index and (mark := self.peek()) in "?#":  # type: ignore[no-untyped-call]
            self.forward()  # type: ignore[no-untyped-call]
            text, end = text + mark, self.get_mark()  # type: ignore[no-untyped-call]
            gap = self.scan_plain_spaces(0, end) or []  # type: ignore[no-untyped-call]
            if not self._ends_plain():
                more: Any = super().scan_plain()  # type: ignore[no-untyped-call]
                text, end = text + "".join(gap) + more.value, more.end_mark
        return yaml.ScalarToken(text, True, token.start_mark, end)  # type: ignore[no-untyped-call]

    def _ends_plain(self) -> bool:
        """Return whether what comes next is no part of a text between brackets, or a question mark."""
        here, then = self.peek(), self.peek(1)  # type: ignore[no-untyped-call]
        return here in ",[]{}?#\0" or (here == ":" and then in " \t\r\n\0,[]{}")

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            name = shortened(event.anchor, 20)
            raise Forbidden.at(event.start_mark, f"anchors and aliases (`&{name}`, `*{name}`) are not read")
        if event.tag is not None:
            raise Forbidden.at(event.start_mark, f"tags (`{shortened(event.tag, 40)}`) are not read")
        if self.depth >= DEEPEST:
            raise Forbidden.at(event.start_mark, f"more than {DEEPEST} lists or mappings lie inside each other")
        if self.nodes >= MOST:
            raise Forbidden.at(event.start_mark, f"it has more than {MOST} values")
        self.depth += 1
        self.nodes += 1
        try:
            return super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        finally:
            self.depth -= 1


def _null(loader: _Loader, node: yaml.ScalarNode) -> None:
    return None


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = _short(node).replace("_", "")
    sign, digits = (text[0], text[1:]) if text[0] in "+-" else ("", text)
    bases = {"0o": 8, "0x": 16}
    return int(sign + (digits[2:] if digits[:2] in bases else digits), bases.get(digits[:2], 10))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = _short(node).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _short(node: yaml.ScalarNode) -> str:
    text: str = node.value
    if len(text) > _LONGEST_NUMBER:
        raise Forbidden.at(node.start_mark, f"a number has {len(text)} characters")
    return text


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
for _tag, _pattern, _first in NUMBERS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
_Loader.add_constructor(_TAG + "null", _null)
_Loader.add_constructor(_TAG + "int", _whole)
_Loader.add_constructor(_TAG + "float", _float)


def compose(text: str) -> yaml.Node | None:
    """Return the nodes of a text, with their places; None where it holds nothing.

    Raises:
        BadYaml: it is not YAML, or holds what is not read here (`Forbidden`).
    """
    if len(text) > LARGEST:
        raise Forbidden(f"it has more than {LARGEST >> 10} thousand characters")
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line = before.count("\n")
        raise BadYaml(
            f"the character U+{ord(text[error.position]):04X} may not stand in it",
            line + 1,
            len(before) - before.rfind("\n"),
        ) from None
    except yaml.MarkedYAMLError as error:
        bad = BadYaml.at(error.problem_mark, error.problem or error.context or "it cannot be read")
        bad.context = error.context or ""
        bad.began = error.context_mark.line + 1 if error.context_mark is not None else 0
        raise bad from None
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise BadYaml(str(error)) from None
    except ValueError as error:
        if isinstance(error, BadYaml):
            raise
        raise BadYaml(str(error)) from None


def construct(node: yaml.Node) -> Any:
    """Return what nodes of `compose` mean.

    Raises:
        Forbidden: a number is too long, or a list or mapping stands as a key.
    """
    loader = _Loader("")
    try:
        return loader.construct_document(node)  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        raise Forbidden.at(error.problem_mark, error.problem or "it cannot be read") from None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def load(text: str) -> Any:
    """Return the value of a text.

    Raises:
        BadYaml: as `compose` and `construct`.
    """
    node = compose(text)
    return None if node is None else construct(node)


def head_of_card(card: Path) -> str:
    """Return the YAML text between the first two lines ``---`` of somebody's README; "" where it does not begin so.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    with open_file(card) as file:
        text = file.read(_LARGEST_CARD).decode("utf-8-sig", errors="replace")
    head = _HEAD.match(text)
    return head[1] if head else ""
