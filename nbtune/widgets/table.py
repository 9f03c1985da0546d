"""Rows under column names, as lines of text and as HTML: for notebooks and shells."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["as_html", "as_text"]


def as_text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines, each column as wide as it needs to be.

    >>> print(as_text(("a", "b"), [("long", "x")]))
    a     b
    long  x
    """
    lines = [columns, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def as_html(columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """A table; cells are text, never markup."""
    left = "style='text-align:left'"
    head = "".join(f"<th scope='col' {left}>{escape(column)}</th>" for column in columns)
    lines = ("".join(f"<td {left}>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    title = f"<caption {left}>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
