"""Columns that say something to a model and that a format does not read, or reads otherwise than they were written:
named, so that nothing is left out unsaid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nbtune.data.formats.reader import written_messages
from nbtune.data.formats.values import is_missing, plainly

_MEDIA = frozenset(("image", "images", "video", "videos", "audio", "audios"))
_SAID = frozenset(("history", "context", "system", "system_prompt", "tools", "functions", "chat_template_kwargs"))
# Around a question, or of an answer: where the rows that are read do not hold it anyway.
_MEANT = frozenset(
    (
        *("inputs", "input", "choices", "options", "passage", "passages", "knowledge", "documents", "available_tools"),
        *("rationale", "explanation", "reasoning", "reasoning_content", "thinking", "thought", "thoughts", "cot"),
        *("prompt", "question", "query", "problem", "instruction", "instructions", "persona", "hint", "hints"),
    )
)
QUESTIONS = frozenset(("prompt", "question", "query", "problem", "instruction"))
_WEIGHTS = frozenset(("weight", "weights", "loss_weight", "sample_weight", "row_weight", "example_weight"))
_SPLITS = frozenset(("split", "subset", "partition", "fold", "set"))
_HELD = re.compile(r"(?i)\s*(?:test|testing|dev|eval|evaluation|val|valid|validation|held[ _-]?out)\s*")
_SPEAKS = frozenset(("role", "from", "speaker"))
_MOST = 10_000  # values within one that are looked at
_WORDS = 4  # a column that mostly holds as many is no mark, name or address
_PLACEHOLDER = re.compile(r"<(?:image|video|audio)>")


def unread(name: str, read: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str:
    """Return a warning that names what is not read of rows; "" if there is nothing.

    Args:
        name: of the format.
        read: the columns that it reads.
        sample: some rows.
    """
    filled = dict.fromkeys(str(key) for row in sample for key, value in row.items() if _holds(value))
    media = [column for column in filled if column.lower() in _MEDIA and column not in read]
    unread_columns = [] if name in ("prompts", "labelled") else _said(filled, read, sample)
    if name == "alpaca:plain":
        unread_columns += [column for column in filled if column.lower() == "history" and column in read]
    if media or unread_columns:
        listed = ", ".join(f"`{column}`" for column in (*media, *unread_columns)[:8])
        why = "only text can be trained" if media else f"rows are read as {name}"
        return f"what stands in {listed} is not learnt: {why}"
    placeholder = next((m for row in sample for v in row.values() if (m := _PLACEHOLDER.search(str(v)))), None)
    return f"rows hold {placeholder[0]}: it is learnt as these words, only text can be trained" if placeholder else ""


def unheeded(name: str, mapping: Mapping[str, str], sample: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return warnings about columns that say what is to be done with rows, and that nobody acts on.

    Args:
        name: of the format.
        mapping: role → column, of what is read.
        sample: some rows.
    """
    if name == "prompts":  # what else a row has is for the rewards
        return []
    read, said = {*mapping.values()}, []
    for column in dict.fromkeys(str(key) for row in sample for key in row):
        values = [row[column] for row in sample if not is_missing(row.get(column))] if column not in read else []
        if column.lower() in _WEIGHTS and any(_number(value) not in (None, 1) for value in values):
            said.append(f"`{column}` changes nothing: how often a row counts is said by `row_weights`")
        elif column.lower() in _SPLITS and (held := next((v for v in values if _HELD.fullmatch(str(v))), None)):
            said.append(
                f"rows whose `{column}` is `{held}` are learnt like all others: leave them out, and name them in "
                "`eval: {data: …}`"
            )
        elif column.lower() in _SPEAKS and name in ("text", "labelled") and values:
            said.append(f"`{column}` is not read, each row is a text by itself: conversations are lists of `messages`")
    for column in () if name in ("messages", "sharegpt") else dict.fromkeys(mapping.values()):
        if any(written_messages(row.get(column)) for row in sample):
            said.append(
                f"`{column}` holds messages that are written as text, and is learnt as these letters: give lists "
                "(`json.loads`)"
            )
    return said


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def fractions(mapping: Mapping[str, str], kind: str, sample: Sequence[Mapping[str, Any]]) -> str:
    """Return a warning that names columns of whole numbers that are learnt with a point and a zero behind them; "" if
    there are none.

    Args:
        mapping: role → column, of what is read.
        kind: of the rows.
        sample: some rows.
    """
    numbers = {"margin", *(("label",) if kind == "feedback" else ())}
    for column in dict.fromkeys(column for role, column in mapping.items() if role not in numbers):
        values = [plainly(row[column]) for row in sample if not is_missing(row.get(column))]
        if values and all(isinstance(value, float) and value.is_integer() for value in values):
            return (
                f"whole numbers in `{column}` are learnt with a fraction, such as `{values[0]}` (a DataFrame makes "
                "them so where some are missing): `df.convert_dtypes()` keeps them whole"
            )
    return ""


def other_questions(read: str | None, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return columns that are called a question as the one that is read is, and say something else."""
    if read is None or read.lower() not in QUESTIONS:
        return []
    return [
        column
        for column in columns
        if column != read
        and column.lower() in QUESTIONS
        and any(_lost(row, column, (read,)) and _lost(row, read, (column,)) for row in sample)
    ]


def _said(filled: Mapping[str, None], read: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns that say something, by their names or as they are written, and are not read."""
    said: list[str] = []
    for column in filled:
        if column in read or column.lower() in _MEDIA:
            continue
        lost = [row[column] for row in sample if _lost(row, column, read)]
        texts = [value for value in lost if isinstance(value, str) and len(value.split()) >= _WORDS]
        if column.lower() in _SAID or (column.lower() in _MEANT and lost) or len(texts) * 2 > len(sample):
            said.append(column)
    return said


def _lost(row: Mapping[str, Any], column: str, read: Sequence[str]) -> bool:
    """Return whether a column holds text that does not stand in those that are read, too."""
    texts = [text.strip() for text in _texts(row.get(column))]
    there = "\0".join(text for name in read for text in _texts(row.get(name)))
    return any(text and text not in there for text in texts)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value, however deep; numbers say nothing by themselves."""
    waiting, seen = [value], 0
    while waiting and seen < _MOST:  # what holds itself never ends
        inner, seen = waiting.pop(), seen + 1
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, Mapping):
            waiting.extend(inner.values())
        elif isinstance(inner, list | tuple):
            waiting.extend(inner)


def _holds(value: Any) -> bool:
    return not is_missing(value) and not (isinstance(value, str | list | tuple | Mapping) and not value)
