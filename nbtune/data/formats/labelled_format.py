"""Rows with a label: a text, or a conversation, and what it is."""

from __future__ import annotations

from typing import Any

from nbtune.data.formats.messages import Chat, Keys, messages_of
from nbtune.data.formats.preference_format import Several
from nbtune.data.formats.reader import PROMPTS, TEXTS, Columns, Format, Parts, Reader, chat_column, there
from nbtune.data.formats.values import Row, is_missing, optional, plainly, string
from nbtune.errors import DataError

LABELS = ("label", "labels", "category", "class", "target", "intent", "topic", "sentiment")


def labelled_format(columns: Columns) -> Format:
    """Return a text and its label: `text`, `label`; the text may be messages. It is read as it stands, and nothing of
    it is imitated: the label is learnt at its last token."""
    label = columns.need("label", LABELS)
    text = columns.given.get("text") or chat_column(columns)
    text = text or columns.need("text", (*TEXTS, "sentence", "review", "utterance", *PROMPTS))
    keys, talks = Keys.of(columns.given), columns.holds(text, list)
    system = columns.system if talks else None

    def read(row: Row) -> Several:
        said = label_of(row.get(label), label)
        value = row.get(text)
        if isinstance(value, list):
            talk = messages_of(value, text, system=optional(row, system), keys=keys).messages
            return Several((Chat([{**m, "train": True} for m in talk]),), (0.0,), label=said)
        return Several((Parts(((string(row, text, "text"), True),), ends=False),), (0.0,), label=said)

    return Format("labelled", there({"text": text, "label": label, "system": system}), read, "labelled")


def label_of(value: Any, column: str) -> str:
    """Return a label as it is called.

    Raises:
        DataError: there is none, or it is no word or whole number.
    """
    if is_missing(value):
        raise DataError(f"`{column}` is missing", fix="give every row its label, or leave it out")
    value = plainly(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # what a table makes of whole numbers with a gap
        return str(int(value))
    if isinstance(value, str | int) and str(value).strip():
        return str(value).strip()
    raise DataError(f"`{column}` is {value!r:.40}, not a label", fix="write a word, or a whole number")


READERS = (Reader("labelled", labelled_format, holds_messages=True),)
