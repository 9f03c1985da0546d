"""The arguments of calls in the form that a chat template wants: a mapping, or JSON text (OpenAI's own form)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from nbtune.errors import DataError

_NAME, _VALUE = "qznamezq", "qzlastzq"


def arguments_wanted(render: Callable[..., str], asked: Mapping[str, Any]) -> str:
    """Return `mapping` where JSON text would come out otherwise (quoted once more, say), `text` where a template would
    write a mapping as Python does, "" where both come out the same, or none at all.

    Args:
        render: a conversation and its `tools` as text.
        asked: a user's message, to begin with.
    """
    mapping, text = (_probe(render, asked, form) for form in ({"qzkeyzq": _VALUE}, f'{{"qzkeyzq": "{_VALUE}"}}'))
    if text and (not mapping or f"'{_VALUE}'" in mapping):
        return "text"
    return "mapping" if mapping and "".join(mapping.split()) != "".join(text.split()) else ""


def _probe(render: Callable[..., str], asked: Mapping[str, Any], arguments: Any) -> str:
    """Return a conversation with a call as text; "" where the template cannot."""
    call = {"type": "function", "id": "qzcallzqa", "function": {"name": _NAME, "arguments": arguments}}
    tool = {"type": "function", "function": {"name": _NAME, "description": "d", "parameters": {}}}
    try:
        text = render([asked, {"role": "assistant", "content": "", "tool_calls": [call]}], tools=[tool])
    except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError):
        return ""
    return text if _VALUE in text else ""


def with_arguments(messages: Sequence[Mapping[str, Any]], wanted: str) -> list[Mapping[str, Any]]:
    """Return the messages, the arguments of their calls in the form that is `wanted`.

    Raises:
        DataError: they are text that is no JSON object.
    """
    return [
        {**m, "tool_calls": [_call(call, wanted) for call in m["tool_calls"]]} if m.get("tool_calls") else m
        for m in messages
    ]


def _call(call: Any, wanted: str) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], wanted)}
    if "arguments" not in call:
        return call
    arguments = call["arguments"]
    if wanted == "mapping" and not isinstance(arguments, Mapping):
        return {**call, "arguments": _object(arguments, call.get("name"))}
    if wanted == "text" and not isinstance(arguments, str):
        return {**call, "arguments": json.dumps({} if arguments is None else arguments, ensure_ascii=False)}
    return call


def _object(given: Any, name: Any) -> dict[str, Any]:
    try:
        value = json.loads(given) if isinstance(given, str) and given.strip() else given or {}
    except (ValueError, RecursionError):
        value = given
    if isinstance(value, dict):
        return value
    raise DataError(
        f"the arguments of a call of `{name!s:.40}` are no JSON object ({given!r:.40})", fix='write such as {"x": 1}'
    )
