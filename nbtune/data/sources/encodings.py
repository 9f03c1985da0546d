"""The bytes of a CSV or a text as letters: UTF-8, UTF-16, and Windows-1252 where that is what they must be."""

from __future__ import annotations

import codecs
import re

READ_AS = "not UTF-8: read as Windows-1252, as Excel saves a CSV; see that its letters are right"
_WESTERN = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœ"
_MARKS = "„“”‚‘’–—…•·‹›«»€£§°²³½¼¾×±µ´©®™¡¿ªº\xa0\xad"
_MANGLED = re.compile(f"[A-Za-z{_WESTERN}][„“”‚]+[A-Za-z]|[{_WESTERN}]{{4}}")


def is_utf_16(data: bytes) -> bool:
    return data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and data[:4] != codecs.BOM_UTF32_LE


def decode(data: bytes) -> tuple[str, str]:
    """Return a text, and what is to be said of how it was read, if anything.

    >>> decode("Größe".encode("cp1252"))[0]
    'Größe'

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16, nor surely Windows-1252.
    """
    try:
        return data.decode("utf-16" if is_utf_16(data) else "utf-8-sig"), ""
    except UnicodeDecodeError:
        text = None if is_utf_16(data) else _western(data)
        if text is None:
            raise
        return text, READ_AS


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
