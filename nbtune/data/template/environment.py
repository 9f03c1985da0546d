"""A chat template, compiled as transformers compiles it, that says where every message went.

The environment is transformers' (sandboxed, trim_blocks, lstrip_blocks, `generation`, `tojson`, `strftime_now`,
`raise_exception`), on strings that remember their origin (`nbtune.data.template.tracked_str`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar

import jinja2
import jinja2.ext

from nbtune.data.template.bounded import BoundedEnvironment, BoundedGenerator, bounded
from nbtune.data.template.left_out import REASONING, marked
from nbtune.data.template.tracked_str import CALLS, OTHER, THOUGHT, Tracked, concat, joint, mark, plain, spans_of, track

_PARTS = {"tool_calls": CALLS, **dict.fromkeys(REASONING, THOUGHT)}


class _Generator(BoundedGenerator):
    """`a ~ b` through the environment's `concat`, as all other joining is."""

    def visit_Concat(self, node: Any, frame: Any) -> None:
        self.write("concat((")
        for argument in node.nodes:
            self.write("str(")
            self.visit(argument, frame)
            self.write("), ")
        self.write("))")


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


class _Environment(BoundedEnvironment):
    code_generator_class = _Generator

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])


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
    environment = _Environment()
    environment.filters.update(tojson=_tojson, join=_join, format=_format, indent=_indent)
    environment.globals.update(raise_exception=_raise, strftime_now=_now, dict=_Dict())
    return environment


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """Return one conversation as text; the result's spans say where each message and each ``generation`` block went.

    Args:
        messages: dicts with `role` and `content`; keys whose value is None count as missing, as in transformers.
        variables: what else the template may use: `bos_token`, `eos_token`, …

    Raises:
        jinja2.TemplateError: the template refuses the conversation.
    """
    chat = [_message(message, number) for number, message in enumerate(messages)]
    values = {
        "messages": chat,
        "tools": tracked(tools, OTHER) if tools else None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    return bounded(compile_template(template), values | variables)


def _message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    chat = {
        key: value if key == "role" else tracked(value, number | _PARTS.get(key, 0))
        for key, value in message.items()
        if value is not None
    }
    if message["role"] == "assistant" and "content" in chat:
        chat["content"] = _answer(message["content"], number, calls=bool(message.get("tool_calls")))
    return _with_reasoning(chat)


def _answer(content: Any, number: int, *, calls: bool) -> Any:
    """Return what an assistant says, with its thought told apart."""
    if isinstance(content, str):
        return marked(content, number, calls=calls)
    answer = tracked(content, number)
    for part in answer if isinstance(answer, list) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            part["text"] = marked(plain(part["text"]), number, calls=calls)
    return answer


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose thoughts stand under each of the names that templates have for them."""
    for key in REASONING:
        if key in message:
            return {"thinking": message[key], **message, "reasoning_content": message[key]}
    return message


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
