"""Completion inside `columns: {…}`: the roles, and the columns that the source of that entry has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbtune.errors import NbtuneError

__all__ = ["column_matches"]

_ROLES = (
    *("prompt", "completion", "messages", "text", "system", "instruction", "input", "output"),
    *("chosen", "rejected", "label", "role", "content"),
)
_SOURCE = re.compile(r"\bsource:\s*([^\s,{}#]+)")
_FLOW = re.compile(r"\bcolumns:\s*\{([^{}]*)$")


def column_matches(above: Sequence[str], before: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """(the fragment, what it may become) where the cursor is in a `columns` mapping, else None.

    >>> column_matches(["data:", "  source: rows", "  columns:"], "    prompt: que", {"rows": [{"question": "Hi"}]})
    ('que', ['question'])
    """
    flow = _FLOW.search(before)
    if flow is not None:
        *done, entry = flow[1].split(",")
    elif _in_block(above, before):
        done, entry = [], before
    else:
        return None
    key, colon, value = entry.partition(":")
    fragment = (value if colon else key).strip()
    if not colon:
        taken = {each.partition(":")[0].strip() for each in done}
        return fragment, [f"{role}: " for role in _ROLES if role.startswith(fragment) and role not in taken]
    return fragment, [name for name in _columns([*above, before], namespace) if name.startswith(fragment)]


def _in_block(above: Sequence[str], before: str) -> bool:
    indent = len(before) - len(before.lstrip())
    for line in reversed(above):
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            return line.strip().lstrip("- ") == "columns:"
    return False


def _columns(lines: Sequence[str], namespace: Mapping[str, Any]) -> list[str]:
    """The columns of the source that was named last."""
    from nbtune.data import resolve
    from nbtune.spec import SourceSpec

    named = [name for line in lines for name in _SOURCE.findall(line)]
    if not named:
        return []
    try:
        rows = resolve([SourceSpec(source=named[-1])], namespace, base_dir=Path.cwd())[0].head(8)
        first = [rows[index] for index in range(min(len(rows), 8))] if rows is not None else []
    except NbtuneError:  # the run will say it
        return []
    return list(dict.fromkeys(str(key) for row in first for key in row))
