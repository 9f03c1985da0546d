"""What the owner of a machine allows each process on it: a small file of theirs, in TOML.

    # /etc/nbtune.toml (on Windows in %ProgramData%), and whatever file NBTUNE_SITE names
    vram_gib = 16
    ram_gib = 32
    threads = 8

It limits and never grants: of all that limits a process the smallest counts.
"""

from __future__ import annotations

import math
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from nbtune.errors import PlanError

_ETC = Path(os.environ.get("PROGRAMDATA", "C:/ProgramData") if sys.platform == "win32" else "/etc") / "nbtune.toml"
_KEYS = ("vram_gib", "ram_gib", "threads")


@dataclass(frozen=True)
class Limit:
    """A limit (bytes, or cores), and whose it is, in words."""

    value: int
    why: str


def smallest(*limits: Limit | None) -> Limit | None:
    """Return the smallest of those that are there; of equal ones the first."""
    return min((limit for limit in limits if limit is not None), key=lambda limit: limit.value, default=None)


def site_limit(key: str) -> Limit | None:
    """Return what the machine's owner allows: bytes of `vram_gib` and `ram_gib`, a number of `threads`.

    Raises:
        PlanError: the file cannot be read, or says something else; the one that is named is not there.
    """
    named = os.environ.get("NBTUNE_SITE")
    if named and not Path(named).exists():
        raise PlanError(
            "NBTUNE_SITE names a file that is not there", place=named, fix=f"unset it, or make the file: {_FIX}"
        )
    return smallest(*(_read(path, key) for path in (_ETC, *([Path(named)] if named else []))))


def environment_limit(name: str) -> Limit | None:
    """Return the bytes that a variable of the environment allows, in GiB.

    Raises:
        PlanError: it is no number above 0.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        return gib(float(text), name)
    except ValueError:
        raise PlanError(f"{name} is {text[:40]!r}, not a number of GiB", fix=f"write {name}=8, or unset it") from None


def gib(count: float, why: str) -> Limit:
    """Return a limit of so many GiB.

    Raises:
        ValueError: that is no number above 0.
    """
    if not (math.isfinite(count) and count > 0):
        raise ValueError(f"{count} GiB")
    return Limit(int(min(count, 2.0**30) * 2**30), why)


def _read(path: Path, key: str) -> Limit | None:
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise PlanError(f"the limits of this machine cannot be read: {why}", place=str(path), fix=_FIX) from None
    if odd := next((name for name in body if name not in _KEYS), None):
        raise PlanError(f"the limits of this machine have no key `{odd[:40]}`", place=str(path), fix=_FIX)
    if key not in body:
        return None
    value = body[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        if key != "threads" and number:
            return gib(value, str(path))
        if isinstance(value, int) and number and value > 0:
            return Limit(value, str(path))
    except ValueError:
        pass
    raise PlanError(f"`{key}` of this machine's limits is no number above 0", place=str(path), fix=_FIX)


_FIX = "its owner writes `vram_gib = 8`, `ram_gib = 32`, `threads = 4`, each or none, in TOML"
