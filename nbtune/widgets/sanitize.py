"""Text from elsewhere (data, answers, names, errors) made fit to be shown: as text, of bounded length."""

from __future__ import annotations

import re

from nbtune.disk import home_folder

_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")  # they would turn around the words next to them, too


def clean(text: object, limit: int = 2000) -> str:
    """Return `text` without control characters and colours, cut after `limit` characters with a note of how many.

    Marks that turn the writing direction are shown by their number.

    >>> clean("a\\x1b[31mb\\x00")
    'ab'
    """
    whole = str(text)
    shown = _CONTROLS.sub("", whole[: 2 * limit])[:limit]
    shown = _TURNS.sub(lambda mark: f"\\u{ord(mark[0]):04x}", shown)
    return shown if len(whole) <= limit else f"{shown}… ({len(whole):,} characters)"


def without_home(path: object) -> str:
    """Return a path as people write it: the home folder is `~`, so that a saved notebook does not tell whose it is."""
    text, home = str(path), str(home_folder())
    return "~" + text[len(home) :] if home != "/" and (text == home or text.startswith(home + "/")) else text
