"""What a row means: detected from the columns and a sample, or said by name.

Every row becomes a `Chat` (messages, rendered by the chat template) or `Parts` (text with and without a loss).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbtune.data.messages import Chat, messages_of
from nbtune.errors import DataError, SpecError
from nbtune.spec import SourceSpec

__all__ = ["FORMATS", "Chat", "Format", "Parts", "detect"]

Row = Mapping[str, Any]


@dataclass(slots=True)
class Parts:
    """Text without a template: (text, trained) pieces, tokenised as one string.

    `ends`: the end-of-sequence token follows. `windows`: too long a text is split, not cut. `raw`: control tokens in
    the text are meant as such.
    """

    parts: tuple[tuple[str, bool], ...]
    ends: bool = True
    windows: bool = False
    raw: bool = False


@dataclass(frozen=True)
class Format:
    """A reading of rows.

    Attributes:
        name: `messages`, `alpaca`, …
        mapping: role → column.
        read: a row as `Chat` or `Parts`; raises DataError without a place.
        trainable: whether plain fine-tuning (sft) can learn from it.
    """

    name: str
    mapping: dict[str, str]
    read: Callable[[Row], Chat | Parts]
    trainable: bool = True


_CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns")
_PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input", "user")
_ANSWERS = ("completion", "response", "answer", "output", "solution", "target", "assistant", "chosen_response")
_TEXTS = ("text", "content", "document", "body")
_ALIASES = {
    "openai": "messages",
    "chat_template": "messages",
    "chatml": "messages",
    "chat": "messages",
    "prompt_completion": "prompt-completion",
    "prompt-response": "prompt-completion",
    "qa": "prompt-completion",
    "completion": "text",
    "pretrain": "text",
    "pretraining": "text",
    "dpo": "preference",
    "input_output": "segments",
    "template-free": "segments",
}


def detect(columns: Sequence[str], sample: Sequence[Row], spec: SourceSpec, place: str) -> Format:
    """The format of rows.

    Args:
        columns: their column names.
        sample: some rows.
        spec: its `format` and `columns` win over detection.
        place: how errors call the source.

    Raises:
        SpecError: an unknown format, or a column that is not there.
        DataError: nothing fits; with the columns and how to say what they are.
    """
    for role, column in spec.columns.items():
        if column not in columns:
            raise SpecError(_missing(role, column, columns), place=place, fix=_near(column, columns))
    name = _named(spec, place)
    if name is None:
        name = _guess(columns, sample, spec.columns)
    if name is None:
        shown = ", ".join(f"`{c}`" for c in columns[:12]) or "none"
        raise DataError(
            f"its columns ({shown}) are none that nbtune knows",
            place=place,
            fix="say what they are, such as `data: {source: …, columns: {prompt: question, completion: reply}}`",
        )
    return FORMATS[name](columns, sample, spec.columns, place)


def _named(spec: SourceSpec, place: str) -> str | None:
    if spec.format is None:
        return None
    name = spec.format.split(":")[0].split(".")[0].lower()
    name = _ALIASES.get(name, name)
    if name not in FORMATS:
        near = difflib.get_close_matches(name, [*FORMATS, *_ALIASES], n=1)
        known = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(FORMATS)}"
        raise SpecError(f"there is no data format `{spec.format}`", place=place, fix=known)
    return name


def _missing(role: str, column: str, columns: Sequence[str]) -> str:
    shown = ", ".join(f"`{c}`" for c in columns[:12])
    return f"there is no column `{column}` (for {role}); its columns are {shown}"


def _near(column: str, columns: Sequence[str]) -> str:
    near = difflib.get_close_matches(column, columns, n=1)
    return f"did you mean `{near[0]}`?" if near else "name one of its columns"


def _guess(columns: Sequence[str], sample: Sequence[Row], given: Mapping[str, str]) -> str | None:
    roles = set(given)
    for name, wanted in (
        ("messages", {"messages"}),
        ("preference", {"chosen", "rejected"}),
        ("alpaca", {"instruction", "output"}),
        ("prompt-completion", {"prompt", "completion"}),
        ("segments", {"segments"}),
        ("text", {"text"}),
    ):
        if wanted <= roles:
            return name
    known = {c.lower() for c in columns} | roles
    if {"chosen", "rejected"} <= known:
        return "preference"
    if {"prompt", "completion"} <= known:
        return "prompt-completion"
    chat = _chat_column(columns, sample)
    if chat is not None:
        return "sharegpt" if _is_sharegpt(chat, sample) else "messages"
    if "segments" in known:
        return "segments"
    if "instruction" in known and known & {"output", "response", "answer", "completion"}:
        return "alpaca"
    if _pick(columns, _PROMPTS, sample) and _pick(columns, _ANSWERS, sample):
        return "prompt-completion"
    texts = [c for c in columns if c.lower() in _TEXTS and _holds(c, sample, str)]
    strings = [c for c in columns if _holds(c, sample, str)]
    return "text" if texts or (len(strings) == 1 and len(columns) == 1) else None


def _holds(column: str, sample: Sequence[Row], kind: type | tuple[type, ...]) -> bool:
    values = [row.get(column) for row in sample if row.get(column) is not None]
    return bool(values) and all(isinstance(v, kind) for v in values)


def _chat_column(columns: Sequence[str], sample: Sequence[Row]) -> str | None:
    listed = [c for c in columns if c.lower() in _CHATS] + [c for c in columns if c.lower() not in _CHATS]
    for column in listed:
        values: list[Any] = [row.get(column) for row in sample if row.get(column)]
        if values and all(isinstance(v, list) and all(isinstance(m, Mapping) for m in v) for v in values):
            keys = {key for value in values for message in value for key in message}
            if {"role", "content"} <= keys or {"from", "value"} <= keys or {"role", "tool_calls"} <= keys:
                return column
    return None


def _is_sharegpt(column: str, sample: Sequence[Row]) -> bool:
    return any("from" in message for row in sample for message in row.get(column) or ())


def _pick(columns: Sequence[str], names: Sequence[str], sample: Sequence[Row]) -> str | None:
    lower = {c.lower(): c for c in columns}
    return next((lower[n] for n in names if n in lower and _holds(lower[n], sample, (str, list))), None)


def _column(role: str, names: Sequence[str], columns: Sequence[str], given: Mapping[str, str], place: str) -> str:
    if role in given:
        return given[role]
    lower = {c.lower(): c for c in columns}
    for name in names:
        if name in lower:
            return lower[name]
    raise SpecError(
        _missing(role, names[0], columns), place=place, fix=f"say which column it is: `columns: {{{role}: …}}`"
    )


def _string(row: Row, column: str, role: str) -> str:
    value = row.get(column)
    if value is None:
        raise DataError(f"`{column}` is missing", fix=f"give every row its {role}")
    if isinstance(value, bool | int | float):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(
            f"`{column}` is a {type(value).__name__}, not text", fix="write text, or say which column it is"
        )
    return value


def _optional(row: Row, column: str | None) -> str:
    value = row.get(column) if column else None
    return value if isinstance(value, str) else ""


def _system_column(columns: Sequence[str], given: Mapping[str, str]) -> str | None:
    if "system" in given:
        return given["system"]
    return next((c for c in columns if c.lower() in ("system", "system_prompt")), None)


def _messages_format(columns: Sequence[str], sample: Sequence[Row], given: Mapping[str, str], place: str) -> Format:
    if "messages" in given:
        column = given["messages"]
    else:
        column = _chat_column(columns, sample) or _column("messages", _CHATS, columns, given, place)
    tools = given.get("tools") or ("tools" if "tools" in columns else None)
    system = _system_column(columns, given)
    mapping = {"messages": column} | ({"tools": tools} if tools else {}) | ({"system": system} if system else {})

    def read(row: Row) -> Chat:
        return messages_of(
            row.get(column), column, tools=row.get(tools) if tools else None, system=_optional(row, system)
        )

    return Format("sharegpt" if _is_sharegpt(column, sample) else "messages", mapping, read)


def _alpaca_format(columns: Sequence[str], sample: Sequence[Row], given: Mapping[str, str], place: str) -> Format:
    instruction = _column("instruction", ("instruction", "prompt", "question"), columns, given, place)
    output = _column("output", ("output", "response", "answer", "completion"), columns, given, place)
    extra = given.get("input") or next((c for c in columns if c.lower() in ("input", "context")), None)
    system = _system_column(columns, given)
    history = given.get("history") or ("history" if "history" in columns else None)
    mapping = {"instruction": instruction, "input": extra, "output": output, "system": system, "history": history}

    def read(row: Row) -> Chat:
        ask, more = _string(row, instruction, "instruction"), _optional(row, extra)
        chat: list[dict[str, Any]] = []
        if text := _optional(row, system):
            chat.append({"role": "system", "content": text})
        for turn in row.get(history) or () if history else ():
            if not isinstance(turn, list | tuple) or len(turn) != 2:
                raise DataError("`history` must be a list of [question, answer]", fix="write pairs of text")
            chat += ({"role": "user", "content": str(turn[0])}, {"role": "assistant", "content": str(turn[1])})
        chat.append({"role": "user", "content": f"{ask}\n\n{more}" if more.strip() else ask})
        chat.append({"role": "assistant", "content": _string(row, output, "answer")})
        return Chat(chat)

    return Format("alpaca", {k: v for k, v in mapping.items() if v}, read)


def _pairs_format(columns: Sequence[str], sample: Sequence[Row], given: Mapping[str, str], place: str) -> Format:
    prompt = (
        given.get("prompt") or _pick(columns, _PROMPTS, sample) or _column("prompt", _PROMPTS, columns, given, place)
    )
    rest = [c for c in columns if c != prompt]
    answer = given.get("completion") or _pick(rest, _ANSWERS, sample)
    answer = answer or _column("completion", _ANSWERS, rest, given, place)
    system = _system_column(columns, given)
    context = given.get("context")
    mapping = {"prompt": prompt, "completion": answer, "system": system, "context": context}

    def read(row: Row) -> Chat:
        asked, said = row.get(prompt), row.get(answer)
        if isinstance(asked, list) or isinstance(said, list):  # conversational: both are lists of messages
            before = (
                messages_of(asked, prompt) if isinstance(asked, list) else Chat([{"role": "user", "content": asked}])
            )
            after = (
                messages_of(said, answer) if isinstance(said, list) else Chat([{"role": "assistant", "content": said}])
            )
            kept = [{**m, "train": False} for m in before.messages]
            return Chat(kept + after.messages, before.tools)
        text = _string(row, prompt, "prompt")
        if more := _optional(row, context):
            text = f"{more}\n\n{text}"
        chat = [{"role": "user", "content": text}, {"role": "assistant", "content": _string(row, answer, "answer")}]
        if instruction := _optional(row, system):
            chat.insert(0, {"role": "system", "content": instruction})
        return Chat(chat)

    return Format("prompt-completion", {k: v for k, v in mapping.items() if v}, read)


def _text_format(columns: Sequence[str], sample: Sequence[Row], given: Mapping[str, str], place: str) -> Format:
    only = [c for c in columns if _holds(c, sample, str)]
    names = (*_TEXTS, *[c.lower() for c in only]) if len(only) == 1 else _TEXTS
    column = _column("text", names, columns, given, place)

    def read(row: Row) -> Parts:
        return Parts(((_string(row, column, "text"), True),), windows=True)

    return Format("text", {"text": column}, read)


def _segments_format(columns: Sequence[str], sample: Sequence[Row], given: Mapping[str, str], place: str) -> Format:
    column = _column("segments", ("segments",), columns, given, place)

    def read(row: Row) -> Parts:
        value = row.get(column)
        if not isinstance(value, list) or not all(
            isinstance(s, Mapping) and isinstance(s.get("text"), str) for s in value
        ):
            raise DataError(f"`{column}` must be a list of {{text, label}}", fix='write [{"text": "…", "label": true}]')
        return Parts(tuple((s["text"], bool(s.get("label", True))) for s in value), ends=False, raw=True)

    return Format("segments", {"segments": column}, read)


def _preference_format(columns: Sequence[str], sample: Sequence[Row], given: Mapping[str, str], place: str) -> Format:
    lower = {c.lower(): c for c in columns}
    mapping: dict[str, str] = {
        role: given.get(role) or lower[role] for role in ("prompt", "chosen", "rejected") if role in {*lower, *given}
    }

    def read(row: Row) -> Chat:
        raise DataError(
            "these are pairs of a better and a worse answer: `method: sft` cannot learn from the difference",
            fix="train on the better answers only: `columns: {prompt: prompt, completion: chosen}` with "
            "`format: prompt-completion`",
        )

    return Format("preference", mapping, read, trainable=False)


FORMATS: dict[str, Callable[[Sequence[str], Sequence[Row], Mapping[str, str], str], Format]] = {
    "messages": _messages_format,
    "sharegpt": _messages_format,
    "alpaca": _alpaca_format,
    "prompt-completion": _pairs_format,
    "text": _text_format,
    "segments": _segments_format,
    "preference": _preference_format,
}
