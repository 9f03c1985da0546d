"""Rows to imitate: conversations, instructions with answers, texts and pieces of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nbtune.data.formats.messages import Chat, Keys, messages_of, tools_of
from nbtune.data.formats.reader import (
    ANSWERS,
    CHATS,
    PROMPTS,
    TEXTS,
    Columns,
    Format,
    Parts,
    Reader,
    chat_column,
    is_sharegpt,
    there,
)
from nbtune.data.formats.values import Row, flag, is_missing, optional, string, text_of, without_missing
from nbtune.errors import DataError

_ALPACA_TEXT = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
)


def of_what_is_there(read: Callable[[Row], Any]) -> Callable[[Row], Any]:
    """Return `read`, given rows without the values that are missing (`without_missing`)."""
    return lambda row: read(without_missing(row))


def messages_format(columns: Columns) -> Format:
    """Return conversations in one column, in OpenAI's or ShareGPT's spelling."""
    column = columns.given.get("messages") or chat_column(columns) or columns.need("messages", CHATS)
    tools, system = columns.tools, columns.system
    keys = Keys.of(columns.given)

    def read(row: Row) -> Chat:
        definitions = row.get(tools) if tools else None
        return messages_of(row.get(column), column, tools=definitions, system=optional(row, system), keys=keys)

    name = "sharegpt" if is_sharegpt(column, columns.sample) else "messages"
    return Format(name, there({"messages": column, "tools": tools, "system": system}), read)


def alpaca_format(columns: Columns) -> Format:
    """Read instruction, input, output; `alpaca:plain` as Alpaca's own text instead of a chat."""
    instruction = columns.need("instruction", ("instruction", "prompt", "question"))
    output = columns.need("output", ("output", "response", "answer", "completion"))
    extra = columns.may("input", ("input", "context"))
    system, history, tools = columns.system, columns.may("history", ("history",)), columns.tools

    def read(row: Row) -> Chat:
        ask, more = string(row, instruction, "instruction"), optional(row, extra)
        chat: list[dict[str, Any]] = []
        if text := optional(row, system):
            chat.append({"role": "system", "content": text})
        before = (row.get(history) or ()) if history else ()
        for turn in before if isinstance(before, list | tuple) else (before,):
            if not isinstance(turn, list | tuple) or len(turn) != 2:
                raise DataError("`history` must be a list of [question, answer]", fix="write pairs of text")
            for role, said in zip(("user", "assistant"), turn, strict=True):
                chat.append({"role": role, "content": text_of(said, "a text in `history`", "write pairs of text")})
        chat.append({"role": "user", "content": f"{ask}\n\n{more}" if more.strip() else ask})
        chat.append({"role": "assistant", "content": string(row, output, "answer")})
        return Chat(chat, tools_of(row.get(tools)) if tools else None)

    def read_plain(row: Row) -> Parts:
        ask, more = string(row, instruction, "instruction"), optional(row, extra)
        head = optional(row, system)
        inputs = f"### Input:\n{more}\n\n" if more.strip() else ""
        paired = ", paired with an input that provides further context" if inputs else ""
        head = f"{head}\n\n" if head else _ALPACA_TEXT.format(paired)
        asked = f"{head}### Instruction:\n{ask}\n\n{inputs}### Response:\n"
        return Parts(((asked, False), (string(row, output, "answer"), True)))

    mapping = {"instruction": instruction, "input": extra, "output": output, "system": system, "history": history}
    mapping["tools"] = tools
    plain = columns.style == "plain"
    return Format("alpaca:plain" if plain else "alpaca", there(mapping), read_plain if plain else read)


def pairs_format(columns: Columns) -> Format:
    """Return a prompt and its completion, text or messages; `prompt-completion:plain` as text without a template."""
    prompt = columns.given.get("prompt") or columns.pick(PROMPTS) or columns.need("prompt", PROMPTS)
    answer = columns.given.get("completion") or columns.pick(ANSWERS, besides=prompt)
    answer = answer or columns.need("completion", ANSWERS)
    system, context, tools = columns.system, columns.may("context", ("context",)), columns.tools

    def read(row: Row) -> Chat:
        question, answer_text = row.get(prompt), row.get(answer)
        definitions = tools_of(row.get(tools)) if tools else None
        if isinstance(question, list) or isinstance(answer_text, list):  # conversational: messages instead of text
            if not isinstance(question, list):
                question = [{"role": "user", "content": _after_context(row, prompt, context)}]
            elif optional(row, context):
                raise DataError(
                    f"`{prompt}` is a list of messages, and `{context}` has no place in it",
                    fix="put it into one of them",
                )
            before = messages_of(question, prompt, system=optional(row, system))
            after = messages_of(
                answer_text if isinstance(answer_text, list) else [{"role": "assistant", "content": answer_text}],
                answer,
            )
            return Chat([{**m, "train": False} for m in before.messages] + after.messages, definitions)
        text = _after_context(row, prompt, context)
        chat = [{"role": "user", "content": text}, {"role": "assistant", "content": string(row, answer, "answer")}]
        if instruction := optional(row, system):
            chat.insert(0, {"role": "system", "content": instruction})
        return Chat(chat, definitions)

    def read_plain(row: Row) -> Parts:
        text, head = _after_context(row, prompt, context), optional(row, system)
        return Parts(((f"{head}\n\n{text}" if head else text, False), (string(row, answer, "answer"), True)))

    mapping = there({"prompt": prompt, "completion": answer, "system": system, "context": context, "tools": tools})
    plain = columns.style == "plain"
    return Format("prompt-completion:plain" if plain else "prompt-completion", mapping, read_plain if plain else read)


def _after_context(row: Row, prompt: str, context: str | None) -> str:
    """Return the question, behind its context if it has one."""
    text = string(row, prompt, "prompt")
    more = optional(row, context)
    return f"{more}\n\n{text}" if more else text


def text_format(columns: Columns) -> Format:
    """Read plain text, all of it trained; long ones become windows."""
    only = [c for c in columns.names if columns.holds(c, str)]
    column = columns.need("text", (*TEXTS, *[c.lower() for c in only]) if len(only) == 1 else TEXTS)

    def read(row: Row) -> Parts:
        return Parts(((string(row, column, "text"), True),), windows=True)

    return Format("text", {"text": column}, read, whole=True)


def segments_format(columns: Columns) -> Format:
    """Return pieces of text, each trained or not; control tokens in them are meant."""
    column = columns.need("segments", ("segments",))

    def read(row: Row) -> Parts:
        value = row.get(column)
        if not isinstance(value, list) or not all(
            isinstance(s, Mapping) and isinstance(s.get("text"), str) for s in value
        ):
            raise DataError(f"`{column}` must be a list of {{text, label}}", fix='write [{"text": "…", "label": true}]')
        labels = [is_missing(s.get("label")) or flag(s["label"], f"a `label` in `{column}`") for s in value]
        return Parts(tuple((s["text"], on) for s, on in zip(value, labels, strict=True)), ends=False, raw=True)

    return Format("segments", {"segments": column}, read)


READERS = (
    Reader("messages", messages_format, holds_messages=True),
    Reader("sharegpt", messages_format, holds_messages=True),
    Reader("alpaca", alpaca_format),
    Reader("prompt-completion", pairs_format),
    Reader("text", text_format),
    Reader("segments", segments_format),
)
