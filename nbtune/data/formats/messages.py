"""Messages of a row, checked and in one spelling: role and content, tool calls, reasoning, what is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbtune.data.formats.values import CHOICES, is_missing, own_choice, text_of
from nbtune.errors import DataError


@dataclass(slots=True)
class Chat:
    """Messages with `role` and `content`; `train: False` on an assistant message means no loss on it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "prompter": "user",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
    "instruction": "system",
}
_ROLE = re.compile(r"^[A-Za-z][\w -]{0,31}$")


@dataclass(frozen=True, slots=True)
class Keys:
    """How messages are spelled where it is neither OpenAI's nor ShareGPT's way; `roles`: their word → ours."""

    role: str = "role"
    content: str = "content"
    roles: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, columns: Mapping[str, str]) -> Keys:
        """Read a spec's `columns`: `{role: speaker, content: says, user: Customer, assistant: Agent}`."""
        roles = tuple((columns[role].lower(), role) for role in ("user", "assistant", "tool") if role in columns)
        return cls(columns.get("role", "role"), columns.get("content", "content"), roles)


_USUAL = Keys()


def messages_of(value: Any, column: str, *, tools: Any = None, system: str = "", keys: Keys | None = None) -> Chat:
    """Return the conversation in a row's column: OpenAI's (`role`, `content`), ShareGPT's (`from`, `value`), or own
    `keys`.

    Raises:
        DataError: it is not a list of messages; without a place.
    """
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = _json(value, column)
    if not isinstance(value, list | tuple):
        kind = "missing" if value is None else f"a {type(value).__name__}"
        raise DataError(f"`{column}` is {kind}, not a list of messages", fix='write [{"role": "user", "content": "…"}]')
    messages = [_message(message, f"message {i} of `{column}`", keys or _USUAL) for i, message in enumerate(value)]
    if not messages:
        raise DataError(f"`{column}` has no messages", fix="leave such rows out")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Chat(messages, tools_of(tools))


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Return the tools of a row: a list of definitions, one alone, or the JSON text of either; None: there are none.

    Raises:
        DataError: it is something else; without a place.
    """
    if isinstance(value, str):
        value = _json(value, "tools") if value.strip() else None
    listed = [value] if isinstance(value, Mapping) else value
    if listed is None or (isinstance(listed, list | tuple) and not listed):
        return None
    if isinstance(listed, list | tuple):
        listed = [_json(tool, "tools") if isinstance(tool, str) else tool for tool in listed]
        if all(isinstance(tool, Mapping) for tool in listed):
            return [_tool(tool) for tool in listed]
    raise DataError(
        f"`tools` is {value!r:.40}, not a list of definitions",
        fix='write [{"type": "function", "function": {"name": …}}], or say which column it is: `columns: {tools: …}`',
    )


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition as templates know it, `{"type": "function", "function": …}`, its parameters as a mapping: it
    may be the function alone, and they JSON text."""
    bare = "function" not in given and "name" in given and given.get("type") in (None, "function")
    tool = {"type": "function", "function": {k: v for k, v in given.items() if k != "type"}} if bare else dict(given)
    function = tool.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("parameters"), str):
        tool["function"] = {**function, "parameters": _json(function["parameters"], "parameters of a tool")}
    return tool


def _json(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"`{column}` is text that is not JSON: {error}", fix="write a list") from None


_PLAIN_ROLES = frozenset(("system", "user", "assistant"))


def _message(value: Any, what: str, keys: Keys) -> dict[str, Any]:
    if type(value) is dict and len(value) == 2 and keys == _USUAL:  # nearly all messages: no need to look closer
        role, content = value.get("role"), value.get("content")
        if type(role) is str and type(content) is str and role in _PLAIN_ROLES:
            return {"role": role, "content": content}
    if not isinstance(value, Mapping):
        raise DataError(f"{what} is a {type(value).__name__}, not a mapping", fix='write {"role": …, "content": …}')
    role = value.get(keys.role, value.get("from"))
    if not isinstance(role, str) or not _ROLE.match(role):
        raise DataError(f"{what} has no usable role ({role!r:.40})", fix="roles are system, user, assistant, tool")
    name = role.strip().lower()
    content = value.get(keys.content, value.get("value"))
    if name == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": _calls(content, what)}
    message: dict[str, Any] = {"role": dict(keys.roles).get(name) or _ROLES.get(name, name)}
    spent = ("role", "from", "content", "value", keys.role, keys.content)
    rest = {k: v for k, v in value.items() if k not in spent and not is_missing(v)}
    content = None if is_missing(content) else content
    if called := rest.pop("function_call", None):  # OpenAI's older spelling
        rest.setdefault("tool_calls", _calls(called, what))
    if rest.get("tool_calls"):
        rest["tool_calls"] = _listed(rest["tool_calls"], what)
    if content is None and not rest.get("tool_calls"):
        raise DataError(f"{what} ({role}) has no content", fix="write its text")
    if not rest.keys().isdisjoint(CHOICES):
        choice = own_choice(rest, what)
        rest = {k: v for k, v in rest.items() if k not in CHOICES} | ({} if choice is None else {"train": choice})
    if isinstance(content, list):
        content = _taken_apart(content, rest, what)
    if thought := next((key for key in KEYS if isinstance(rest.get(key), list)), None):
        rest[thought], said = _parts(rest[thought], f"the thoughts of {what}")
        rest |= {"thought_detail": said} if said else {}
    if isinstance(content, list):
        content, details = _parts(content, what)
        if details and all(not d["train"] for d in details) and sum(map(_size, details)) == len(content):
            rest["train"] = False
        elif details:
            rest["train_detail"] = [*rest.get("train_detail", ()), *details]
    elif content is not None and not isinstance(content, str):
        content = text_of(content, f"the content of {what} ({role})", "write text")
    message["content"] = content
    return message | rest


def _listed(calls: Any, what: str) -> list[Any]:
    """Return the calls of a message, which may be JSON text, as a list of mappings."""
    calls = _json(calls, f"tool_calls of {what}") if isinstance(calls, str) else calls
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError(f"the tool_calls of {what} are no calls", fix='write [{"function": {"name": …}}]')
    return list(calls)


def _calls(content: Any, what: str) -> list[dict[str, Any]]:
    calls = _json(content, what) if isinstance(content, str) else content
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(c, Mapping) and "name" in c for c in calls):
        raise DataError(f"{what} is not a call", fix='write {"name": "…", "arguments": {…}}')
    return [{"type": "function", "function": {"name": c["name"], "arguments": c.get("arguments", {})}} for c in calls]


def _taken_apart(content: list[Any], rest: dict[str, Any], what: str) -> list[Any]:
    """Return the parts of a content that are text; calls and thoughts among them (LLaMA-Factory's) go where others have
    them: into `rest`."""
    texts: list[Any] = []
    for number, part in enumerate(content):
        kind, name = part.get("type") if isinstance(part, Mapping) else None, f"part {number} of {what}"
        if kind == "tool_call":
            if own_choice(part, name) is not None:
                raise DataError(f"{name} is a call that says whether it is trained", fix="let its message say it")
            rest["tool_calls"] = [*rest.get("tool_calls", ()), *_calls(part.get("value", part.get("text")), name)]
        elif kind in ("reasoning", "thinking"):
            said = next(
                (part[key] for key in (kind, "text", "content", "value") if not is_missing(part.get(key))), None
            )
            rest.setdefault(KEYS[0], [])
            if not isinstance(rest[KEYS[0]], list):
                raise DataError(f"{what} has thoughts in two places", fix="write them once")
            rest[KEYS[0]].append({**part, "type": "text", "text": said})
        else:
            texts.append(part)
    return texts


def _parts(content: list[Any], what: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the text of content parts, and the `train_detail` of those that say whether they are trained; other parts
    than text are for models that see and hear."""
    kinds = sorted({str(p["type"]) for p in content if isinstance(p, Mapping) and p.get("type")} - {"text"})
    if kinds:
        raise DataError(f"{what} holds {', '.join(kinds)}: only text can be trained", fix="leave such rows out")
    text, details = "", []
    for number, part in enumerate(content):
        name = f"part {number} of {what}"
        said, choice = part, None
        if isinstance(part, Mapping):
            said = next((part[key] for key in ("text", "content", "value") if not is_missing(part.get(key))), None)
            choice = own_choice(part, name)
        begin, text = len(text), text + text_of(said, name, 'write {"type": "text", "text": "…"}')
        if choice is not None and begin < len(text):
            details.append({"begin_offset": begin, "end_offset": len(text) - 1, "train": choice})
    return text, details


def _size(detail: Mapping[str, Any]) -> int:
    return int(detail["end_offset"] - detail["begin_offset"] + 1)


KEYS = ("reasoning_content", "thinking", "reasoning")
_TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"),
         ("<|begin_of_thought|>", "<|end_of_thought|>"))  # fmt: skip
_BLOCKS = [re.compile(rf"\s*{re.escape(start)}(.*?){re.escape(end)}\s*", re.DOTALL) for start, end in _TAGS]
_ANSWER = re.compile(r"<\|begin_of_solution\|>(.*?)\n*<\|end_of_solution\|>\s*", re.DOTALL)  # behind a thought


def told_apart(messages: Sequence[dict[str, Any]], policy: str) -> list[dict[str, Any]]:
    """Return the messages, with the thoughts of answers split off (`policy` split) or without them (drop)."""
    return [_apart(m, policy) if m["role"] == "assistant" else m for m in messages]


def _apart(message: dict[str, Any], policy: str) -> dict[str, Any]:
    content = message.get("content")
    thought, said = _thought(content) if isinstance(content, str) else (None, content)
    if policy == "drop":
        kept = {key: value for key, value in message.items() if key not in (*KEYS, "thought_detail")}
        return kept if thought is None else {**kept, "content": said}
    if thought is None or any(message.get(key) for key in KEYS):
        return message
    return {**message, "content": said, "reasoning_content": thought.strip("\n")}


def _thought(content: str) -> tuple[str | None, str]:
    """Return the thought that an answer begins with, None if it does with none, and the rest."""
    block = next((found for block in _BLOCKS if (found := block.match(content))), None)
    if block is None:
        return None, content
    answer = _ANSWER.fullmatch(content, block.end())
    return block[1], answer[1] if answer else content[block.end() :]
