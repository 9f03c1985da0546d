"""Text from elsewhere (data, answers, names, errors) made fit to be shown: as text, of bounded length."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["clean", "without_home"]

_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: object, limit: int = 2000) -> str:
    """`text` without control characters and terminal colours, cut after `limit` characters with a note of how many.

    >>> clean("a\\x1b[31mb\\x00")
    'ab'
    """
    whole = str(text)
    shown = _CONTROLS.sub("", whole[: 2 * limit])[:limit]
    return shown if len(whole) <= limit else f"{shown}… ({len(whole):,} characters)"


def without_home(path: object) -> str:
    """A path as people write it: the home folder is `~`, so that a saved notebook does not tell whose it is."""
    text, home = str(path), str(Path.home())
    return "~" + text[len(home) :] if home != "/" and (text == home or text.startswith(home + "/")) else text
