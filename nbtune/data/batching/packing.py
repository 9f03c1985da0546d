"""Which examples share a sequence: best-fit decreasing over lengths, in O(n log capacity)."""

from __future__ import annotations

import numpy as np

__all__ = ["best_fit", "efficiency"]


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of example numbers, each of at most `capacity` tokens.

    The longest example goes first, into the fullest bin that still holds it. Room left is a small number (0..capacity),
    so bins lie in a list per room and a tree of "is there any" finds the fullest that fits.

    Args:
        lengths: tokens per example, each 1..capacity.
        capacity: tokens per bin.

    Raises:
        ValueError: an example is longer than the capacity.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(f"an example has {lengths.max()} tokens, a bin {capacity}")
    order = np.argsort(-lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    some = 0  # bit r is set where by_room[r] is not empty: the lowest set bit at or above a size is the best fit
    for example in order:
        size = sizes[example]
        fits = some >> size
        if not fits:
            room, number = capacity, len(bins)
            bins.append([example])
        else:
            room = size + ((fits & -fits).bit_length() - 1)
            number = by_room[room].pop()
            bins[number].append(example)
            if not by_room[room]:
                some ^= 1 << room
        left = room - size
        if not by_room[left]:
            some |= 1 << left
        by_room[left].append(number)
    return bins


def efficiency(bins: list[list[int]], lengths: np.ndarray, capacity: int) -> float:
    """Share of the bins' tokens that are not padding, 0..1."""
    return float(np.sum(lengths)) / (len(bins) * capacity) if bins else 1.0
