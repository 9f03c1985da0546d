"""What is wrong with a text that is no JSON, as people and other tools write it, and what to write instead."""

from __future__ import annotations

import json

_PLAIN = "write one JSON object a line"
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_SHOWN = 40


def json_slip(raw: bytes, error: ValueError) -> tuple[str, str]:
    """Return what is wrong, and what to write.

    >>> json_slip(b'[{"a": 1},]', json.JSONDecodeError("Expecting value", '[{"a": 1},]', 10))
    ('a comma stands before the `]` in line 1, column 11', 'leave that comma out')
    """
    if not isinstance(error, json.JSONDecodeError):
        return f"{error} ({_start(raw)})", _PLAIN
    text, at = error.doc, error.pos
    where = f"line {error.lineno}, column {error.colno}"
    rest, before = text[at:].lstrip(), text[:at].rstrip()
    if is_web_page(raw):
        return "it is a page of the web (HTML)", "fetch the file itself: of a repository its raw form"
    if text.strip() in ("[", "]"):
        return (
            "a list begins or ends on a line of its own",
            "end the file's name in .json: it is one list, not an object a line",
        )
    if rest == "," and error.msg.startswith("Extra data"):
        return "a comma stands behind the object", "leave it out: each line is an object by itself"
    if rest[:1] == "," and rest[1:].lstrip()[:1] in ("]", "}"):  # Python 3.13 points at the comma
        before, rest = before + ",", rest[1:].lstrip()
    if before.endswith(",") and rest[:1] in ("]", "}"):
        return f"a comma stands before the `{rest[0]}` in {where}", "leave that comma out"
    if rest[:1] == "'":
        return f"a text stands in single quotes ({where})", "put it in double quotes, as `json.dumps` does"
    if rest[:2] in ("//", "/*") or rest[:1] == "#":
        return f"a comment stands in it ({where})", "leave it out: JSON has none"
    for theirs, ours in _PYTHON.items():
        if rest.startswith(theirs):
            return f"`{theirs}` is Python's word ({where})", f"write `{ours}`, as `json.dumps` does"
    if not rest:
        return f"it ends too soon ({_start(raw)})", "close what is open, or write the file again"
    return f"{error.msg}, {where} ({_start(raw)})", _PLAIN


def is_web_page(raw: bytes) -> bool:
    """Return whether bytes are a page of the web, such as a sign-in that was saved in place of a file."""
    return bytes(raw[:200]).lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype html", b"<html"))


def _start(raw: bytes) -> str:
    return f"it starts {raw[:_SHOWN].decode(errors='replace')!r}"
