"""A row of any kind as a line of JSON."""

from __future__ import annotations

import json
import os
from typing import Any

from nbtune.errors import DataError


def to_json(row: Any, place: str) -> str:
    """Return a row as one line of JSON; NaN becomes null, arrays lists, dates text.

    Raises:
        DataError: a value is none of these.
    """
    try:
        return json.dumps(row, ensure_ascii=True, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_without_nan(row), ensure_ascii=True, default=_plain)
    except TypeError as error:
        raise DataError(f"a value cannot be written down: {error}", place=place, fix="keep text and numbers") from None


def _plain(value: Any) -> Any:
    """Return numpy scalars and arrays, dates, paths as JSON has them."""
    for method in ("tolist", "isoformat"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if hasattr(value, "keys"):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {value!r:.60}")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return value
