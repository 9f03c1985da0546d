"""Shapes of rows that Axolotl has a `type` for and nobody else: read by that name only."""

from __future__ import annotations

from typing import Any

from nbtune.data.formats.messages import Chat
from nbtune.data.formats.reader import Columns, Format, Reader, there
from nbtune.data.formats.values import Row, optional, string
from nbtune.errors import DataError


def _asked(question: str, answer: str) -> Chat:
    return Chat([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def _choices(columns: Columns) -> Format:
    """Read `question`, `choices`, and the `solution` or `explanation`."""
    question, choices = columns.need("prompt", ("question",)), columns.need("choices", ("choices",))
    answer = columns.may("completion", ("solution",)) or columns.need("completion", ("explanation",))

    def read(row: Row) -> Chat:
        options = row.get(choices)
        if not isinstance(options, list) or not options:
            raise DataError(f"`{choices}` must be a list of texts", fix="give each row its choices")
        listed = "\n".join(f'- "{option}"' for option in options)
        return _asked(f"{string(row, question, 'prompt')}\n\n{listed}", string(row, answer, "answer"))

    return Format("choices", {"prompt": question, "choices": choices, "completion": answer}, read)


def _jeopardy(columns: Columns) -> Format:
    """Read `category` and `question`; the answer begins with "what is"."""
    question, answer = columns.need("prompt", ("question",)), columns.need("completion", ("answer",))
    category = columns.may("context", ("category",))

    def read(row: Row) -> Chat:
        more = optional(row, category)
        ask = string(row, question, "prompt")
        return _asked(f"{ask}\n\n{more}" if more else ask, f"what is {string(row, answer, 'answer')}")

    return Format("jeopardy", there({"prompt": question, "completion": answer, "context": category}), read)


def _reflection(columns: Columns) -> Format:
    """Read `instruction`, `input`, `output`, `reflection`, `corrected`: the reflection is a turn of the user's."""
    instruction, extra = columns.need("instruction", ("instruction",)), columns.may("input", ("input",))
    said = [columns.need(role, (role,)) for role in ("output", "reflection", "corrected")]

    def read(row: Row) -> Chat:
        ask, more = string(row, instruction, "instruction"), optional(row, extra)
        talk: list[dict[str, Any]] = [{"role": "user", "content": f"{ask}\n\n{more}" if more.strip() else ask}]
        for role, column in zip(("assistant", "user", "assistant"), said, strict=True):
            talk.append({"role": role, "content": string(row, column, column)})
        return Chat(talk)

    mapping = {"instruction": instruction, "input": extra, "output": said[0], "reflection": said[1]}
    return Format("reflection", there(mapping | {"corrected": said[2]}), read)


READERS = (
    Reader("explainchoice", _choices, listed=False),
    Reader("concisechoice", _choices, listed=False),
    Reader("jeopardy", _jeopardy, listed=False),
    Reader("reflection", _reflection, listed=False),
    Reader("alpaca_reflect", _reflection, listed=False),
)
