"""Claims about all of what was found, which do not hold of nothing: `all(())` is true, and a loop over nothing asserts
nothing. `tests/test_house.py` wants no ``assert all(…)``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Found = TypeVar("_Found")


def some(found: Iterable[_Found]) -> list[_Found]:
    """Return what was found, as a list.

    Raises:
        AssertionError: it is nothing.
    """
    listed = list(found)
    assert listed, "nothing was found of which something could be claimed"
    return listed


def every(claims: Iterable[object]) -> bool:
    """Return whether all claims hold.

    Raises:
        AssertionError: there is none.
    """
    return all(some(claims))
