"""Rows whose words have labels: a list of words, and one of what each is."""

from __future__ import annotations

from typing import Any

from nbtune.data.formats.labelled_format import label_of
from nbtune.data.formats.preference_format import Several
from nbtune.data.formats.reader import Columns, Format, Parts, Reader
from nbtune.data.formats.values import Row, text_of
from nbtune.errors import DataError

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "pos_tags", "chunk_tags", "upos", "labels", "entities")


def tagged_format(columns: Columns) -> Format:
    """Return words and their labels: `tokens`, `tags`. Text without a template: a word a line, whose line break carries
    its label."""
    words, tags = columns.need("tokens", WORDS), columns.need("tags", TAGS)

    def read(row: Row) -> Several:
        said, given = row.get(words), row.get(tags)
        if not isinstance(said, list) or not said:
            raise DataError(f"`{words}` must be a list of words", fix="give each word its text")
        if not isinstance(given, list) or len(given) != len(said):
            raise DataError(f"`{tags}` must have one label a word ({len(said)})", fix="label every word")
        labels = tuple(label_of(one, tags) for one in given)
        return Several((Parts(tuple(lines(said, words)), ends=False),), (0.0,), labels)

    return Format("tagged", {"tokens": words, "tags": tags}, read, "tagged")


def lines(words: list[Any], column: str) -> list[tuple[str, bool]]:
    """Return words as such a row has them: a line each, whose break is judged.

    >>> lines(["Ada", "sails "], "words")
    [('Ada', False), ('\\n', True), ('sails', False), ('\\n', True)]

    Raises:
        DataError: a word is empty, or several lines.
    """
    found: list[tuple[str, bool]] = []
    for word in words:
        text = text_of(word, f"a word of `{column}`").strip()
        if not text or "\n" in text:
            raise DataError(
                f"a word of `{column}` is {'empty' if not text else 'several lines'}",
                fix="leave it out, with its label",
            )
        found += [(text, False), ("\n", True)]
    return found


READERS = (Reader("tagged", tagged_format, columns=frozenset(("tokens", "ner_tags"))),)
