"""Jinja as transformers has it for chat templates, bounded, on strings that remember their origin.

The environment is transformers' (sandboxed, trim_blocks, lstrip_blocks, `generation`, `tojson`, `strftime_now`,
`raise_exception`); its strings say where they came from (`nbtune.data.template.tracked_str`).

Whoever writes a template, of chats or of rows, could write one that never ends, or that takes all memory. So steps,
characters and seconds of one rendering are bounded: every turn of a loop and every call of a macro or block counts as a
step; what grows texts, lists and numbers is asked first.
"""

from __future__ import annotations

import json
import operator
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, ClassVar

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nbtune.data.template.tracked_str import OTHER, Tracked, concat, joint, mark, spans_of, track

MOST_STEPS = 2_000_000  # of one rendering; a chat of 10,000 messages takes some ten thousand
LONGEST = 1 << 26  # characters, or items, of one value
MOST_MADE = 1 << 30  # characters or items that one rendering makes in all
SECONDS = 8.0  # of one rendering; ordinary ones take milliseconds
_WIDE = ("center", "ljust", "rjust", "zfill", "expandtabs")
_FORMAT = re.compile(r"\d{6}|\*")
_WITHIN = re.compile(r":[^{}]*\{")  # a width that is another value
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

    def visit_Concat(self, node: Any, frame: Any) -> None:
        """Write `a ~ b` through the environment's `concat`, as all other joining is."""
        self.write("concat((")
        for argument in node.nodes:
            self.write("str(")
            self.visit(argument, frame)
            self.write("), ")
        self.write("))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which nothing goes on for ever; `bounded` begins a rendering."""

    code_generator_class = BoundedGenerator
    intercepted_binops = frozenset((*_OPERATORS, "+"))  # also: not computed while a template is compiled

    def __init__(self) -> None:
        self.concat = _concat  # type: ignore[method-assign]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
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
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 has wrapped `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_method(owner, getattr(method, "__name__", ""), (*args, *kwargs.values()))
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
        values = [inner for each in args for inner in (each.values() if isinstance(each, Mapping) else [each])]
        great = any(isinstance(each, int) and each > 99_999 for each in values)
        if _FORMAT.search(owner) or (great and _WITHIN.search(owner)):
            raise TemplateLimit("it asks for a text of great width")
    elif name == "replace" and len(args) > 1 and isinstance(args[0], str):
        _budget.make(len(owner) + owner.count(args[0]) * _size(args[1]))
    elif name == "join" and args and isinstance(args[0], list | tuple):
        _budget.make(len(owner) * len(args[0]) + sum(map(_size, args[0])))


def _asked_first(name: str, made_by: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of texts that asks as the method of this name does."""

    @wraps(made_by)  # also what jinja2 wrote on it: whether it wants the context
    def asking(*args: Any, **kwargs: Any) -> Any:
        at = next((i for i, each in enumerate(args) if isinstance(each, str)), None)
        if at is not None:
            _check_method(args[at], name, (*args[at + 1 :], *kwargs.values()))
        return made_by(*args, **kwargs)

    return asking


def _of_a_size(made_by: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that makes as many pieces as a number says, or of as many."""

    @wraps(made_by)
    def asking(*args: Any, **kwargs: Any) -> Any:
        _budget.make(max((each for each in (*args, *kwargs.values()) if isinstance(each, int)), default=0))
        return made_by(*args, **kwargs)

    return asking


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}``: what the assistant wrote."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return mark(caller())


class _Dict:
    """`dict(...)` for templates, without the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    _budget.make(indent if isinstance(indent, int) else 0)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    tags = set(_tags(value))
    return track(text, joint(tags)) if tags else text


class _DataDict(dict):  # type: ignore[type-arg]
    """A mapping of the data, with the message that it belongs to."""

    __slots__ = ("_tag",)


def _tags(value: Any) -> Iterable[int]:
    if type(value) is _DataDict:
        yield value._tag  # type: ignore[attr-defined]
    elif type(value) is Tracked:
        yield from (tag for _, _, tag in spans_of(value) if tag >= OTHER)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tags(key)
            yield from _tags(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tags(inner)


def _join(value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = (item.get(attribute, "") if isinstance(item, Mapping) else "" for item in value)
    pieces: list[str] = []
    for item in value:
        pieces += (d, str(item)) if pieces else (str(item),)
    return concat(pieces)


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    _check_operation("%", str(value), None)
    text = str(value) % (kwargs or args)
    tags = set(_tags([value, list(args), kwargs]))
    return track(text, joint(tags)) if tags else text


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    pad = " " * min(width, 1000) if isinstance(width, int) else width
    lines = (s + "\n" if not s.endswith("\n") else s).splitlines() if s else [""]
    pieces: list[str] = [pad] if first else []
    for i, line in enumerate(lines):
        if i:
            pieces += ("\n", pad if blank or line else "")
        pieces.append(line)
    return concat(pieces)


@lru_cache(maxsize=16)
def compile_template(template: str) -> jinja2.Template:
    """Return the compiled template.

    Raises:
        jinja2.TemplateSyntaxError: it is not Jinja.
    """
    return compiled(make_environment(), template)


def compiled(environment: BoundedEnvironment, template: str) -> jinja2.Template:
    """Return a template, compiled.

    Raises:
        jinja2.TemplateSyntaxError: it is not Jinja, or nested too deeply.
    """
    try:
        return environment.from_string(template)
    except jinja2.TemplateError:
        raise
    except (SyntaxError, RecursionError, ValueError, OverflowError, MemoryError) as error:
        raise jinja2.TemplateSyntaxError(f"it cannot be compiled ({str(error)[:100]})", 1) from error


def make_environment() -> BoundedEnvironment:
    """Make transformers' environment for chat templates, whose texts remember where they came from."""
    environment = BoundedEnvironment()
    environment.filters.update(tojson=_tojson, join=_join, format=_format, indent=_indent)
    environment.filters.update({name: _of_a_size(environment.filters[name]) for name in ("batch", "slice")})
    environment.globals.update(raise_exception=_raise, strftime_now=_now, dict=_Dict())
    return environment


def tracked(value: Any, tag: int) -> Any:
    """Return a value of a row, its texts marked as data."""
    if isinstance(value, str):
        return track(value, tag)
    if isinstance(value, Mapping):
        mapping = _DataDict((key, tracked(inner, tag)) for key, inner in value.items())
        mapping._tag = tag  # type: ignore[attr-defined]
        return mapping
    if isinstance(value, list | tuple):
        return [tracked(inner, tag) for inner in value]
    return value


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
