"""The bytes of a CSV or a text as letters: UTF-8, UTF-16, and Windows-1252 where that is what they must be."""

from __future__ import annotations

import codecs
import re

from nbtune.untrusted import shortened

READ_AS = "not UTF-8: read as Windows-1252, as Excel saves a CSV"
_UNMARKED = "UTF-16 without its mark at the beginning: see that its letters are right"
_WESTERN = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœ"
_MARKS = "„“”‚‘’–—…•·‹›«»€£§°²³½¼¾×±µ´©®™¡¿ªº\xa0\xad"
_LETTER = f"[A-Za-z{_WESTERN}]"
# Quotes and signs where no western text has them: other code pages have letters there.
_MANGLED = re.compile(
    f"{_LETTER}[„“”‚]+[A-Za-z]|[{_WESTERN}]{{4}}|{_LETTER}[²³°§±¼½¾©®™¡¿µ›‹]{_LETTER}|[±™®]{_LETTER}|[¼½¾]{_LETTER}{{3}}"
)
# As which such a text may have been meant: of central Europe, Turkey, the Baltic, with Latin-9's œ and €.
_OTHERS = ("cp1250", "iso8859_2", "cp1254", "cp1257", "iso8859_15", "iso8859_16", "iso8859_3", "iso8859_4")
_SHOWN = 3  # words


def is_utf_16(data: bytes) -> bool:
    return data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and data[:4] != codecs.BOM_UTF32_LE


def decode(data: bytes) -> tuple[str, str]:
    """Return a text, and what is to be said of how it was read, if anything: with words that may be others.

    >>> decode("Größe".encode("cp1252"))[0]
    'Größe'

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16, nor surely Windows-1252.
    """
    if unmarked := _unmarked(data):
        return data.decode(unmarked), _UNMARKED
    try:
        return data.decode("utf-16" if is_utf_16(data) else "utf-8-sig"), ""
    except UnicodeDecodeError:
        text = None if is_utf_16(data) else _western(data)
        if text is None:
            raise
        return text, f"{READ_AS}; {_sample(text)}"


def _unmarked(data: bytes) -> str:
    """Return which kind of UTF-16 it is where no mark says so, by where its zeros are: half of the line breaks' and
    spaces' bytes, and of all western letters'; "" where it is none."""
    head = data[: 1 << 16]
    if len(data) % 2 or is_utf_16(data) or b"\0" not in head:
        return ""
    even, odd = head[::2].count(0), head[1::2].count(0)
    kind = "utf-16-be" if even > odd else "utf-16-le"
    if max(even, odd) * 16 < len(head) or min(even, odd) * 16 > max(even, odd):
        return ""
    try:
        return "" if "\0" in data.decode(kind) else kind
    except UnicodeDecodeError:
        return ""


def _sample(text: str) -> str:
    """Return what says how sure the letters are: words that other code pages have otherwise."""
    words = dict.fromkeys(re.findall(r"[^\W_]*[^\W_a-zA-Z0-9][^\W_]*|\w+[²³±¼½¾¿¡]+", text[: 1 << 20]))
    doubted = sorted(filter(_read_otherwise, words), key=lambda word: not set(word) & set(_MARKS))[:_SHOWN]
    if not doubted:
        return "see that its letters are right"
    shown = ", ".join(f"`{shortened(word, 30)}`" for word in doubted)
    return f"other code pages have other letters in words such as {shown}: if these are wrong, save it as UTF-8"


def _read_otherwise(word: str) -> bool:
    """Return whether a code page of today has other letters where this word has its own."""
    raw = word.encode("cp1252")
    return any(_letters(raw, other) not in (None, word) for other in _OTHERS)


def _letters(raw: bytes, encoding: str) -> str | None:
    """Return bytes as a word, None where they are none: they have signs or nothing there."""
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        return None
    high = [letter for letter in text if not letter.isascii()]
    return text if any(map(str.isalpha, high)) and all(letter >= "\xa0" for letter in high) else None


def _western(data: bytes) -> str | None:
    """Return a text of Windows-1252, which Excel writes in the west of Europe; None where it may be else: other code
    pages give letters that no western language has, or many in a row, and of damaged UTF-8 most letters are whole."""
    whole = [letter for letter in data.decode(errors="replace") if not letter.isascii()]
    if whole.count("\N{REPLACEMENT CHARACTER}") * 2 <= len(whole):
        return None
    try:
        text = data.decode("cp1252") if b"\0" not in data else ""
    except UnicodeDecodeError:
        return None
    odd = {letter for letter in set(text) if not letter.isascii()} - {*_WESTERN, *_MARKS}
    return None if not text or odd or _MANGLED.search(text) else text
