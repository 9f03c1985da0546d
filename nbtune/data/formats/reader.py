"""What a reader of rows is made of: the columns that are there, who plays which role, and what becomes of a row.

A file ``NAME_format.py`` here makes one or several (`Reader`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbtune.data.formats.values import Row, is_missing
from nbtune.errors import DataError, SpecError
from nbtune.methods import METHODS

_WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns")
PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input", "user", "article")
ANSWERS = (
    *("completion", "response", "answer", "output", "solution", "target", "assistant", "generation", "summary"),
    "chosen_response",
)
TEXTS = ("text", "content", "document", "body")

_KINDS = {
    "sft": "questions with answers, or texts",
    "pairs": "pairs of a better and a worse answer",
    "feedback": "answers judged good or bad",
    "stepwise": "steps judged one by one",
    "labelled": "texts with a label",
    "tagged": "words with a label each",
    "texts": "texts",
    "prompts": "prompts without answers",
}
_TO_IMITATE = {  # what makes rows of a kind such that imitation learns from them
    "pairs": "give the better answers (`chosen`) alone, as rows with the columns `prompt, completion`",
    "feedback": "keep the good ones, and say `format: prompt-completion`",
    "stepwise": "join the steps of good solutions into one `completion`",
    "labelled": "say `format: text`, where the label is not to be learnt, or make the label an answer (`completion`)",
    "tagged": "join the words into one text (`text`)",
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


@dataclass(frozen=True)
class Format:
    """A reading of rows.

    Attributes:
        name: `messages`, `alpaca`, …
        mapping: role → column.
        read: a row as `Chat` or `Parts` (rows that judge: as `preference.Several`); raises DataError without a place.
        kind: what can learn from it (`nbtune.methods.ROW_KINDS`).
        whole: rows to imitate that have no questions: texts.
        unread: a warning that names columns which say something and are not read, or not as they are meant, "" if there
            are none.
    """

    name: str
    mapping: dict[str, str]
    read: Callable[[Row], Any]
    kind: str = "sft"
    unread: str = ""
    whole: bool = False

    def check(self, kind: str, place: str) -> None:
        """Refuse rows of a kind that is not wanted.

        Raises:
            DataError: they are not; with what to do.
        """
        if kind == self.kind or (kind == "texts" and self.whole):
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
        matches = (self._lower[n] for n in names if n in self._lower)
        return next((c for c in matches if c != besides and self.holds(c, (str, list))), None)

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

    @property
    def tools(self) -> str | None:
        """The column with the definitions of tools; OpenAI once called them functions."""
        return self.may("tools", ("tools", "functions"))


def missing(role: str, column: str, names: Sequence[str]) -> str:
    """Return the sentence that a column is not there."""
    shown = ", ".join(f"`{c}`" for c in names[:12])
    return f"there is no column `{column}` (for {role}); its columns are {shown}"


def near(column: str, names: Sequence[str]) -> str:
    """Return what to write instead of a column that is not there."""
    matches = difflib.get_close_matches(column, names, n=1)
    return f"did you mean `{matches[0]}`?" if matches else "name one of its columns"


def chat_column(columns: Columns) -> str | None:
    """Return the column that holds conversations."""
    role, content = columns.given.get("role", "role"), columns.given.get("content", "content")
    listed = [c for c in columns.names if c.lower() in CHATS]
    for column in [*listed, *(c for c in columns.names if c not in listed)]:
        values: list[Any] = [row.get(column) for row in columns.sample if row.get(column)]
        if column in listed and values and all(written_messages(value) for value in values):
            return column
        if values and all(isinstance(v, list) and all(isinstance(m, Mapping) for m in v) for v in values):
            keys = {key for value in values for message in value for key in message}
            if any(pair <= keys for pair in ({role, content}, {"from", "value"}, {"role", "tool_calls"})):
                return column
    return None


def written_messages(value: Any) -> bool:
    """Return whether a text is a list of messages, as a cell of a table holds it: JSON, or what Python prints."""
    return isinstance(value, str) and _WRITTEN.match(value) is not None


def is_sharegpt(column: str, sample: Sequence[Row]) -> bool:
    """Return whether its messages are spelled `from` and `value`."""
    return any("from" in message for row in sample for message in row.get(column) or () if isinstance(message, Mapping))


def there(mapping: Mapping[str, str | None]) -> dict[str, str]:
    """Return the roles that some column plays."""
    return {role: column for role, column in mapping.items() if column}


@dataclass(frozen=True)
class Reader:
    """One format, as ``READERS`` of a file ``NAME_format.py`` lists it.

    Args:
        name: what `format:` calls it.
        make: its reading of a source, made for the columns that are there.
        columns: rows that have all of these, and no format named, are read by it.
        holds_messages: whether its rows may hold conversations: then `columns` may name keys of their messages, too.
        listed: whether it is offered by name; one that only other tools' names lead to is not.
    """

    name: str
    make: Callable[[Columns], Format]
    columns: frozenset[str] = frozenset()
    holds_messages: bool = False
    listed: bool = True
