"""How the rows of each format become chats or text: one reader a format, made for the columns that are there."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbtune.data.formats.messages import Chat, Keys, messages_of, tools_of
from nbtune.data.formats.values import flag, is_missing, text_of, without_missing
from nbtune.errors import DataError, SpecError
from nbtune.methods import METHODS

Row = Mapping[str, Any]

CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns")
PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input", "user", "article")
ANSWERS = (
    *("completion", "response", "answer", "output", "solution", "target", "assistant", "generation", "summary"),
    "chosen_response",
)
TEXTS = ("text", "content", "document", "body")

_ALPACA_TEXT = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
)


_KINDS = {
    "sft": "questions with answers, or texts",
    "pairs": "pairs of a better and a worse answer",
    "feedback": "answers judged good or bad",
    "stepwise": "steps judged one by one",
    "prompts": "prompts without answers",
}
_TO_IMITATE = {  # what makes rows of a kind such that imitation learns from them
    "pairs": "give the better answers (`chosen`) alone, as rows with the columns `prompt, completion`",
    "feedback": "keep the good ones, and say `format: prompt-completion`",
    "stepwise": "join the steps of good solutions into one `completion`",
    "prompts": "give every row an answer (`completion`)",
}


@dataclass(slots=True)
class Parts:
    """Text without a template: (text, trained) pieces, tokenised as one string.

    `ends`: the end-of-sequence token follows. `windows`: too long a text is split, not cut. `raw`: control tokens in
    the text are meant as such. `data`: the stretches (start, end) of the text that came from the row, where the rest
    is a template's own; None: all of it.
    """

    parts: tuple[tuple[str, bool], ...]
    ends: bool = True
    windows: bool = False
    raw: bool = False
    data: tuple[tuple[int, int], ...] | None = None


def of_what_is_there(read: Callable[[Row], Any]) -> Callable[[Row], Any]:
    """Return `read`, given rows without the values that are missing (`without_missing`)."""
    return lambda row: read(without_missing(row))


@dataclass(frozen=True)
class Format:
    """A reading of rows.

    Attributes:
        name: `messages`, `alpaca`, …
        mapping: role → column.
        read: a row as `Chat` or `Parts` (rows that judge: as `preference.Several`); raises DataError without a place.
        kind: what can learn from it: `sft`, `pairs`, `feedback`, `stepwise`, `prompts`
            (`nbtune.methods.ROW_KINDS`).
        unread: a warning that names columns which say something and are not read, "" if there are none.
    """

    name: str
    mapping: dict[str, str]
    read: Callable[[Row], Any]
    kind: str = "sft"
    unread: str = ""

    def check(self, kind: str, place: str) -> None:
        """Refuse rows of a kind that is not wanted.

        Raises:
            DataError: they are not; with what to do.
        """
        if kind == self.kind:
            return
        what, able = _KINDS[self.kind], [f"`{name}`" for name, method in METHODS.items() if method.rows == self.kind]
        other = f", or choose a method that learns from these: {', '.join(able)}" if able else ""
        if kind == "sft":
            cause = f"these are {what}: `method: sft` cannot learn from them"
            raise DataError(cause, place=place, fix=f"{_TO_IMITATE[self.kind]}{other}")
        wanted = columns_of(kind)
        rows = f"rows with the columns `{wanted}` (`columns` says which of yours is what)" if wanted else "other rows"
        raise DataError(f"these are {what}, and {_KINDS[kind]} are wanted", place=place, fix=f"give {rows}{other}")


def columns_of(kind: str) -> str:
    """Return the columns that rows of a kind have, as the methods that learn from these say: `prompt, chosen,
    rejected`."""
    return next((method.columns for method in METHODS.values() if method.rows == kind), "")


class Columns:
    """The columns of a source: which role each plays.

    Args:
        names: as they are.
        sample: some rows.
        given: role → column, from the spec.
        place: how errors call the source.
        style: what stands behind the colon of a format's name (`alpaca:plain`).
    """

    def __init__(
        self, names: Sequence[str], sample: Sequence[Row], given: Mapping[str, str], place: str, style: str = ""
    ) -> None:
        self.names, self.sample, self.given, self.place, self.style = names, sample, given, place, style
        self._lower = {name.lower(): name for name in names}

    def holds(self, column: str, kind: type | tuple[type, ...]) -> bool:
        """Return whether all values of the sample are of a kind (those that are missing apart)."""
        values = [row.get(column) for row in self.sample if not is_missing(row.get(column))]
        return bool(values) and all(isinstance(v, kind) for v in values)

    def pick(self, names: Sequence[str], besides: str = "") -> str | None:
        """Return the first of `names` that is there and holds text or lists."""
        found = (self._lower[n] for n in names if n in self._lower)
        return next((c for c in found if c != besides and self.holds(c, (str, list))), None)

    def need(self, role: str, names: Sequence[str]) -> str:
        """Return the column of a role.

        Raises:
            SpecError: none of `names` is there.
        """
        if role in self.given:
            return self.given[role]
        for name in names:
            if name in self._lower:
                return self._lower[name]
        raise SpecError(
            missing(role, names[0], self.names),
            place=self.place,
            fix=f"say which column it is: `columns: {{{role}: …}}`",
        )

    def may(self, role: str, names: Sequence[str]) -> str | None:
        """Return the column of a role that rows can do without."""
        return self.given.get(role) or next((self._lower[n] for n in names if n in self._lower), None)

    @property
    def system(self) -> str | None:
        """The column with the system prompt."""
        return self.may("system", ("system", "system_prompt"))


def missing(role: str, column: str, names: Sequence[str]) -> str:
    """Return the sentence that a column is not there."""
    shown = ", ".join(f"`{c}`" for c in names[:12])
    return f"there is no column `{column}` (for {role}); its columns are {shown}"


def near(column: str, names: Sequence[str]) -> str:
    """Return what to write instead of a column that is not there."""
    found = difflib.get_close_matches(column, names, n=1)
    return f"did you mean `{found[0]}`?" if found else "name one of its columns"


def chat_column(columns: Columns) -> str | None:
    """Return the column that holds conversations."""
    role, content = columns.given.get("role", "role"), columns.given.get("content", "content")
    listed = [c for c in columns.names if c.lower() in CHATS]
    for column in [*listed, *(c for c in columns.names if c not in listed)]:
        values: list[Any] = [row.get(column) for row in columns.sample if row.get(column)]
        if values and all(isinstance(v, list) and all(isinstance(m, Mapping) for m in v) for v in values):
            keys = {key for value in values for message in value for key in message}
            if any(pair <= keys for pair in ({role, content}, {"from", "value"}, {"role", "tool_calls"})):
                return column
    return None


def is_sharegpt(column: str, sample: Sequence[Row]) -> bool:
    """Return whether its messages are spelled `from` and `value`."""
    return any("from" in message for row in sample for message in row.get(column) or () if isinstance(message, Mapping))


def string(row: Row, column: str, role: str) -> str:
    """Return the text of a column.

    Raises:
        DataError: it is missing, or no text.
    """
    value = row.get(column)
    if type(value) is str:
        return value
    if is_missing(value):
        raise DataError(f"`{column}` is missing", fix=f"give every row its {role}")
    return text_of(value, f"`{column}`")


def optional(row: Row, column: str | None) -> str:
    """Return the text of a column, "" if there is none.

    Raises:
        DataError: something stands in it that is no text.
    """
    value = row.get(column) if column else None
    if type(value) is str:
        return value
    if is_missing(value) or (isinstance(value, list | tuple | Mapping) and not value):
        return ""
    return text_of(value, f"`{column}`", "write it as text, or say with `template` how a row reads")


def there(mapping: Mapping[str, str | None]) -> dict[str, str]:
    """Return the roles that some column plays."""
    return {role: column for role, column in mapping.items() if column}


def messages_format(columns: Columns) -> Format:
    """Return conversations in one column, in OpenAI's or ShareGPT's spelling."""
    column = columns.given.get("messages") or chat_column(columns) or columns.need("messages", CHATS)
    tools, system = columns.may("tools", ("tools",)), columns.system
    keys = Keys.of(columns.given)

    def read(row: Row) -> Chat:
        given = row.get(tools) if tools else None
        return messages_of(row.get(column), column, tools=given, system=optional(row, system), keys=keys)

    name = "sharegpt" if is_sharegpt(column, columns.sample) else "messages"
    return Format(name, there({"messages": column, "tools": tools, "system": system}), read)


def alpaca_format(columns: Columns) -> Format:
    """Read instruction, input, output; `alpaca:plain` as Alpaca's own text instead of a chat."""
    instruction = columns.need("instruction", ("instruction", "prompt", "question"))
    output = columns.need("output", ("output", "response", "answer", "completion"))
    extra = columns.may("input", ("input", "context"))
    system, history, tools = columns.system, columns.may("history", ("history",)), columns.may("tools", ("tools",))

    def read(row: Row) -> Chat:
        ask, more = string(row, instruction, "instruction"), optional(row, extra)
        chat: list[dict[str, Any]] = []
        if text := optional(row, system):
            chat.append({"role": "system", "content": text})
        for turn in (row.get(history) or ()) if history else ():
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
    system, context, tools = columns.system, columns.may("context", ("context",)), columns.may("tools", ("tools",))

    def read(row: Row) -> Chat:
        asked, said = row.get(prompt), row.get(answer)
        given = tools_of(row.get(tools)) if tools else None
        if isinstance(asked, list) or isinstance(said, list):  # conversational: messages instead of text
            if not isinstance(asked, list):
                asked = [{"role": "user", "content": _after_context(row, prompt, context)}]
            elif optional(row, context):
                raise DataError(
                    f"`{prompt}` is a list of messages, and `{context}` has no place in it",
                    fix="put it into one of them",
                )
            before = messages_of(asked, prompt, system=optional(row, system))
            after = messages_of(said if isinstance(said, list) else [{"role": "assistant", "content": said}], answer)
            return Chat([{**m, "train": False} for m in before.messages] + after.messages, given)
        text = _after_context(row, prompt, context)
        chat = [{"role": "user", "content": text}, {"role": "assistant", "content": string(row, answer, "answer")}]
        if instruction := optional(row, system):
            chat.insert(0, {"role": "system", "content": instruction})
        return Chat(chat, given)

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

    return Format("text", {"text": column}, read)


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


READERS: dict[str, Callable[[Columns], Format]] = {
    "messages": messages_format,
    "sharegpt": messages_format,
    "alpaca": alpaca_format,
    "prompt-completion": pairs_format,
    "text": text_format,
    "segments": segments_format,
}
