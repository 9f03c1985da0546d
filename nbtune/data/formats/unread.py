"""Columns that say something to a model and that a format does not read: named, so that nothing is left out unsaid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nbtune.data.formats.values import is_missing

_MEDIA = frozenset(("image", "images", "video", "videos", "audio", "audios"))
_SAID = frozenset(("history", "context", "system", "system_prompt", "tools", "chat_template_kwargs"))
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
    unread_columns = (
        [column for column in filled if column.lower() in _SAID and column not in read] if name != "prompts" else []
    )
    if name == "alpaca:plain":
        unread_columns += [column for column in filled if column.lower() == "history" and column in read]
    if media or unread_columns:
        listed = ", ".join(f"`{column}`" for column in (*media, *unread_columns))
        why = "only text can be trained" if media else f"rows are read as {name}"
        return f"what stands in {listed} is not learnt: {why}"
    placeholder = next((m for row in sample for v in row.values() if (m := _PLACEHOLDER.search(str(v)))), None)
    return f"rows hold {placeholder[0]}: it is learnt as these words, only text can be trained" if placeholder else ""


def _holds(value: Any) -> bool:
    return not is_missing(value) and not (isinstance(value, str | list | tuple | Mapping) and not value)
