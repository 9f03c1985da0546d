"""Jinja as transformers has it for chat templates, bounded, on strings that remember their origin.

The environment is transformers' (sandboxed, trim_blocks, lstrip_blocks, `generation`, `tojson`, `strftime_now`,
`raise_exception`); its strings say where they came from (`nbtune.data.template.tracked_str`).

Whoever writes a template, of chats or of rows, could write one that never ends, or that takes all memory. So steps,
bytes and seconds of one rendering are bounded: every turn of a loop and every call of a macro or block counts as a
step; what makes texts, lists and numbers is asked first (`nbtune.data.template.demands`).
"""

from __future__ import annotations

import json
import operator
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.filters import make_attrgetter
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import escape

from nbtune.data.template.demands import (
    CONTAINERS,
    DataDict,
    TemplateLimit,
    asked_first,
    check_method,
    check_operation,
    weight,
)
from nbtune.data.template.generator import BoundedGenerator
from nbtune.data.template.tracked_str import OTHER, Tracked, concat, joint, mark, size, spans_of, track

MOST_STEPS = 2_000_000  # of one rendering; a chat of 10,000 messages takes some ten thousand
MOST_MADE = 1 << 27  # bytes that one rendering makes in all, also those that it no longer holds
MOST_OF_ROW = 64
LONGEST = 1 << 19  # characters of a template, of which the longest has some 50,000; it is compiled before it is run
SECONDS = 8.0  # of one rendering; ordinary ones take milliseconds
_OF_MAPPINGS = frozenset(dir({}))
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "*": operator.mul,
    "**": operator.pow,
    "%": operator.mod,
}


class Budget(threading.local):
    """What is left to the rendering that this thread is in."""

    def __init__(self) -> None:
        self.start({})

    def start(self, row: Any) -> None:
        """Begin a rendering of a row."""
        self.steps, self.made, self.until = MOST_STEPS, MOST_MADE, time.monotonic() + SECONDS
        self._row: Any = row

    def step(self) -> str:
        """Count a turn of a loop, or a call.

        Raises:
            TemplateLimit: there were too many, or time is up.
        """
        self.steps -= 1
        if self.steps < 0 or time.monotonic() > self.until:
            raise TemplateLimit("it takes too many steps: its loops or macros do not end in time")
        return ""

    def make(self, count: int) -> None:
        """Count bytes that are made.

        Raises:
            TemplateLimit: it is too much.
        """
        self.made -= count
        if self.made < 0 and (self._row is None or self._more() < 0):
            raise TemplateLimit("it makes too much text")

    def _more(self) -> int:
        """Return what is left, with what a large row may be made into."""
        row, self._row = self._row, None
        self.made += MOST_OF_ROW * weight(row, 1 << 40)
        return self.made

    def expand(self, value: Any) -> Any:
        """Return a value that is written out or compared next, with all that is in it.

        Raises:
            TemplateLimit: it is too much.
        """
        if isinstance(value, CONTAINERS):
            if type(value) is DataDict:  # which holds no value twice
                return value
            if (found := weight(value, self.made)) > self.made and self._row is not None:
                found = weight(value, self._more())
            self.make(found)
        elif isinstance(value, int):
            self.make(value.bit_length())
        return value


budget = Budget()


def _concat(pieces: Any) -> str:
    listed = list(pieces)
    budget.make(sum(map(size, listed)))
    return concat(listed)


def made(value: Any) -> Any:
    """Return what was made, counted."""
    budget.make(size(value))
    return value


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which nothing goes on for ever; `bounded` begins a rendering."""

    code_generator_class = BoundedGenerator
    intercepted_binops = frozenset((*_OPERATORS, "+"))  # also: not computed while a template is compiled

    def __init__(self) -> None:
        self.concat = _concat  # type: ignore[method-assign]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.step, self.expand, self.made = budget.step, budget.expand, made
        self.globals.pop("lipsum", None)

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
            return made(concat(values))
        total = values[0]
        for value in values[1:]:
            total = made(total + value)
        return total

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, argument if type(argument) is str else budget.expand(argument))

    def text(self, value: Any) -> str:
        """Return a value written out."""
        return value if type(value) is str or type(value) is Tracked else str(budget.expand(value))

    def escaped(self, context: Any, value: Any) -> str:
        """Return a value written out where a template may ask for HTML."""
        if not context.eval_ctx.autoescape:
            return self.text(value)
        budget.make(6 * size(value))
        return escape(budget.expand(value))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        check_operation(budget, operator, left, right)
        return _OPERATORS[operator](left, right)

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if type(__obj) is Macro:
            return super().call(__context, __obj, *args, **kwargs)
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 has wrapped `format`
        owner = getattr(method, "__self__", None)
        check_method(budget, owner, getattr(method, "__name__", ""), (*args, *kwargs.values()))
        return made(super().call(__context, __obj, *args, **kwargs))


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
    budget.expand(value)
    budget.make(indent if isinstance(indent, int) else size(indent))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    tags = set(_tags(value))
    return track(text, joint(tags)) if tags else text


def _tags(value: Any) -> Iterable[int]:
    if type(value) is DataDict:
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
        text = str(budget.expand(item))
        budget.make(size(text) + size(d))
        pieces += (d, text) if pieces else (text,)
    return concat(pieces)


@jinja2.pass_environment
def _sum(environment: Any, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    total, read = start, (lambda item: item) if attribute is None else make_attrgetter(environment, attribute)
    for item in iterable:
        budget.step()
        total = made(total + read(item))
    return total


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    check_operation(budget, "%", str(value), kwargs or args)
    text = str(value) % (kwargs or args)
    tags = set(_tags([value, list(args), kwargs]))
    return track(text, joint(tags)) if tags else text


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    pad = " " * min(width, 1000) if isinstance(width, int) else width
    lines = (s + "\n" if not s.endswith("\n") else s).splitlines() if s else [""]
    pieces: list[str] = [pad] if first else []
    budget.make(size(pad) * s.count("\n"))
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
        jinja2.TemplateSyntaxError: it is not Jinja, nested too deeply, or too long.
    """
    if len(template) > LONGEST:
        raise jinja2.TemplateSyntaxError(f"it has {len(template):,} characters, of at most {LONGEST:,}", 1)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError:
        raise
    except (SyntaxError, RecursionError, ValueError, OverflowError, MemoryError) as error:
        raise jinja2.TemplateSyntaxError(f"it cannot be compiled ({str(error)[:100]})", 1) from error


def make_environment() -> BoundedEnvironment:
    """Make transformers' environment for chat templates, whose texts remember where they came from."""
    environment = BoundedEnvironment()
    environment.filters.update(tojson=_tojson, join=_join, format=_format, indent=_indent, sum=_sum)
    tables: tuple[dict[str, Any], ...] = (environment.filters, environment.tests)
    for table in tables:
        table.update({name: asked_first(budget, name, does) for name, does in table.items()})
    environment.globals.update(raise_exception=_raise, strftime_now=_now, dict=_Dict())
    return environment


def tracked(value: Any, tag: int) -> Any:
    """Return a value of a row, its texts marked as data."""
    if isinstance(value, str):
        return track(value, tag)
    if isinstance(value, Mapping):
        mapping = DataDict((key, tracked(inner, tag)) for key, inner in value.items())
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
    budget.start(values)
    try:
        return template.render(values)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        raise
    except Exception as error:  # whatever else its expressions end in: 1/0, a list's end, too deep a recursion
        raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {str(error)[:100]}") from error
