"""A row's mark: a short name made of its content, by which a spec speaks of it wherever it lies.

The same row has the same mark in a list, a frame, a file or a run's folder; rows that are equal share theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["mark_of"]

DIGITS = 12  # a row that is not meant has the mark of one that is with a chance of 2^-48


def mark_of(row: Mapping[str, Any]) -> str:
    """``r`` and twelve hexadecimal digits of the BLAKE2b hash of the row's JSON, without keys that hold nothing.

    >>> mark_of({"b": 1, "a": None}) == mark_of({"b": 1})
    True
    """
    text = json.dumps(_filled(row), sort_keys=True, ensure_ascii=False, default=str)
    return "r" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGITS // 2).hexdigest()


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _filled(inner) for key, inner in value.items() if inner is not None}
    return [_filled(inner) for inner in value] if isinstance(value, list | tuple) else value
