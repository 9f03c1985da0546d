"""The memory that people have, and what runs in it."""

from __future__ import annotations

CARDS = (4, 6, 8, 12, 16, 24, 48, 80)
"""GiB of memory that people have."""


def fits_in(size: int) -> int | None:
    """Return the least memory (GiB, one of `CARDS`) that runs a file of `size` bytes with some thousand tokens of
    context.

    >>> nbtune.planner.fits_in(5 * 2**30)
    8
    """
    needs = size * 1.1 + 2**30
    return next((card for card in CARDS if needs <= 0.92 * card * 2**30), None)
