"""A template's work, bounded: steps, characters and seconds of one rendering.

Whoever writes a chat template, or a template of rows, could write one that never ends, or that takes all memory. Every
turn of a loop and every call of a macro or block counts as a step; what grows texts, lists and numbers is asked first.
"""

from __future__ import annotations

import operator
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nbtune.data.template.tracked_str import Tracked, concat

MOST_STEPS = 2_000_000  # of one rendering; a chat of 10,000 messages takes some ten thousand
LONGEST = 1 << 26  # characters, or items, of one value
MOST_MADE = 1 << 30  # characters or items that one rendering makes in all
SECONDS = 8.0  # of one rendering; ordinary ones take milliseconds
_WIDE = ("center", "ljust", "rjust", "zfill", "expandtabs")
_FORMAT = re.compile(r"\d{6}|\*")
_OF_MAPPINGS = frozenset(dir({}))
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "*": operator.mul,
    "**": operator.pow,
    "%": operator.mod,
}


class TemplateLimit(jinja2.exceptions.SecurityError):
    """A template does more than any needs to."""


class _Budget(threading.local):
    """What is left to the rendering that this thread is in."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.steps, self.made, self.until = MOST_STEPS, MOST_MADE, time.monotonic() + SECONDS

    def step(self) -> str:
        self.steps -= 1
        if self.steps < 0 or time.monotonic() > self.until:
            raise TemplateLimit("it takes too many steps: its loops or macros do not end in time")
        return ""

    def make(self, size: int) -> None:
        self.made -= size
        if size > LONGEST or self.made < 0:
            raise TemplateLimit("it makes too much text")


_budget = _Budget()


def _concat(pieces: Any) -> str:
    listed = list(pieces)
    _budget.make(sum(map(len, listed)))
    return concat(listed)


class BoundedGenerator(CodeGenerator):
    """Writes calls of our own as such: those of a template go through the sandbox, which takes its time."""

    def visit_Call(self, node: Any, frame: Any, forward_caller: bool = False) -> None:
        if isinstance(node.node, nodes.EnvironmentAttribute):
            self.write("environment.step()")
        elif isinstance(node.node, nodes.ExtensionAttribute) and forward_caller:
            self.visit(node.node, frame)
            self.write("(caller=caller)")
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def visit_Add(self, node: Any, frame: Any) -> None:
        """Write `a + b + c` as one call."""
        values = [node.right]
        while isinstance(node.left, nodes.Add):
            node = node.left
            values.append(node.right)
        self.write("environment.add((")
        for value in (node.left, *reversed(values)):
            self.visit(value, frame)
            self.write(", ")
        self.write("))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which nothing goes on for ever; `bounded` begins a rendering."""

    code_generator_class = BoundedGenerator
    intercepted_binops = frozenset((*_OPERATORS, "+"))  # also: not computed while a template is compiled

    def __init__(self, **options: Any) -> None:
        self.concat = _concat  # type: ignore[method-assign]
        super().__init__(**options)
        self.step = _budget.step
        self.globals.pop("lipsum", None)
        for name in ("center", "replace"):
            self.filters[name] = _asked_first(name, self.filters[name])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for kind in (nodes.For, nodes.Macro, nodes.Block):
            for node in tree.find_all(kind):
                call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
                node.body.insert(0, nodes.ExprStmt(call).set_lineno(node.lineno))  # type: ignore[attr-defined]
        tree.set_environment(self)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj and attribute not in _OF_MAPPINGS:  # nearly all that is asked
            return obj[attribute]
        return super().getattr(obj, attribute)

    def add(self, values: tuple[Any, ...]) -> Any:
        """Return the sum; each of its steps at most doubles what is there, and may be asked afterwards."""
        for value in values:
            if type(value) is not str and type(value) is not Tracked:
                break
        else:
            text = concat(values)
            _budget.make(len(text))
            return text
        made = values[0]
        for value in values[1:]:
            made = made + value
            _budget.make(_size(made))
        return made

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return _OPERATORS[operator](left, right)

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_method(owner, getattr(__obj, "__name__", ""), args)
        return super().call(__context, __obj, *args, **kwargs)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _check_operation(operation: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operation == "%":
        if isinstance(left, str) and _FORMAT.search(left):
            raise TemplateLimit("it asks for a text of great width")
    elif operation == "*":
        if numbers:
            _budget.make((left.bit_length() + right.bit_length()) << 12)
        elif isinstance(left, int) or isinstance(right, int):
            times = left if isinstance(left, int) else right
            _budget.make(max(0, times) * (_size(left) + _size(right)))
    elif numbers and (left.bit_length() * abs(right)) > 1 << 14:
        raise TemplateLimit("it makes a number of too many digits")


def _check_method(owner: str, name: str, args: tuple[Any, ...]) -> None:
    if name in _WIDE:
        width = max((each for each in args if isinstance(each, int)), default=0)
        _budget.make(width * (owner.count("\t") if name == "expandtabs" else 1))
    elif name in ("format", "format_map"):
        if _FORMAT.search(owner):
            raise TemplateLimit("it asks for a text of great width")
    elif name == "replace" and len(args) > 1 and isinstance(args[0], str):
        _budget.make(len(owner) + owner.count(args[0]) * _size(args[1]))
    elif name == "join" and args and isinstance(args[0], list | tuple):
        _budget.make(len(owner) * len(args[0]) + sum(map(_size, args[0])))


def _asked_first(name: str, made_by: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of texts that asks as the method of this name does."""
    from functools import wraps

    @wraps(made_by)  # also what jinja2 wrote on it: whether it wants the context
    def asking(*args: Any, **kwargs: Any) -> Any:
        at = next((i for i, each in enumerate(args) if isinstance(each, str)), None)
        if at is not None:
            _check_method(args[at], name, (*args[at + 1 :], *kwargs.values()))
        return made_by(*args, **kwargs)

    return asking


def bounded(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """Return what a template makes of values.

    Raises:
        jinja2.TemplateError: it refuses them, does too much (`TemplateLimit`), or ends in an error of Python that is
            none of the following.
        TypeError, ValueError, KeyError, AttributeError: it expects others.
    """
    _budget.start()
    try:
        return template.render(values)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        raise
    except Exception as error:  # whatever else its expressions end in: 1/0, a list's end, too deep a recursion
        raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {str(error)[:100]}") from error
