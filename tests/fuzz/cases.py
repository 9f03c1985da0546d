"""What a case is, and how one of any kind is tried."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nbtune.errors import NbtuneError

KINDS = ("specs", "rows", "models", "runs", "trained", "gguf", "held", "pairs")
FINE = ("accepted", "refused")
BUG = "a bug in nbtune or a library"


class Silent(Exception):
    """Something was accepted, and is silently not what was asked for."""


@dataclass
class Verdict:
    """How a case ended: `accepted`, `refused`, `error` or `silent`; of the last two, what was given and what came."""

    outcome: str
    said: str = ""
    given: str = ""

    @property
    def fine(self) -> bool:
        return self.outcome in FINE


def trial(kind: str, seed: int, folder: Path) -> Verdict:
    """Make the case of a seed, and try it.

    Args:
        folder: an empty one, for the case's files.
    """
    module: Any = import_module(f"tests.fuzz.{kind}")
    numbered = {"number": seed} if kind == "pairs" else {}  # whose cases are the rows of an array
    made: Any = module.make(random.Random(f"{kind} {seed}"), folder, **numbered)
    return verdict_on(made.attempt, made.given)


def verdict_on(attempt: Callable[[], object], given: str) -> Verdict:
    """Return how a case ended; an error that nbtune takes for a bug of its own is one."""
    try:
        attempt()
    except Silent as finding:
        return Verdict("silent", str(finding), given)
    except NbtuneError as error:
        return Verdict("error", str(error), given) if BUG in str(error) else Verdict("refused", str(error)[:300])
    except Exception:  # noqa: BLE001 — whatever it is, it is the finding
        return Verdict("error", traceback.format_exc()[-1500:], given)
    return Verdict("accepted")


@dataclass
class Case:
    """One case: what to call, and what was given to it, for people to read."""

    attempt: Callable[[], object]
    given: str
