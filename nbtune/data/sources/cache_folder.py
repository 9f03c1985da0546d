"""Where nbtune keeps what it can make again: ``$NBTUNE_CACHE``, or ``nbtune`` in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """The folder; it need not exist."""
    own = os.environ.get("NBTUNE_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own).expanduser() if own else home / "nbtune"
