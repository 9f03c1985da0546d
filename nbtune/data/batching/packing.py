"""Which examples share a sequence: best-fit decreasing over lengths, in O(n log capacity).

Of all examples at once, or, where the order of draws says what a step is made of, of a step's at a time.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Return bins of example numbers, each of at most `capacity` tokens.

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
    by_room: defaultdict[int, list[int]] = defaultdict(list)
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


def in_windows(lengths: np.ndarray, kinds: np.ndarray, capacity: int, count: int) -> list[list[int]]:
    """Return bins of example numbers, `count` after `count` of them from as many examples in a row as these hold.

    Best fit over everything puts short examples together, so that some steps would be of one source. Here a window of
    `count` bins (a step) has what a stretch of the order has. Room that is left is filled with what comes next of the
    kinds that the window has less of than its share.

    Args:
        lengths: tokens per example in their order, each 1..capacity.
        kinds: what each is of, small numbers from 0.
        capacity: tokens per bin.
        count: bins of a window; the last has what is left.
    """
    sizes, taken = lengths.tolist(), np.zeros(len(lengths), bool)
    shares = np.bincount(kinds) / max(len(kinds), 1)
    packed: list[list[int]] = []
    at = 0
    while at < len(sizes):
        window, tokens, end = [], 0, at
        while end < len(sizes) and tokens + sizes[end] * (not taken[end]) <= count * capacity:
            if not taken[end]:
                window.append(end)
                tokens += sizes[end]
            end += 1
        bins = _fitted(window, lengths, capacity, count)
        at = max((m for members in bins for m in members), default=end - 1) + 1
        while len(bins) < count and at < len(sizes):  # too many were left out
            bins += [] if taken[at] else [[at]]
            at += 1
        _fill(bins, range(at, min(len(sizes), at + len(window) // 2 + 16)), lengths, kinds, shares, capacity, taken)
        packed += bins
    return packed


def _fitted(window: list[int], lengths: np.ndarray, capacity: int, count: int) -> list[list[int]]:
    """Return at most `count` bins of the first examples of a window: its last ones are left out until these suffice."""
    while True:
        bins = [[window[member] for member in members] for members in best_fit(lengths[window], capacity)]
        if len(bins) <= count:
            return bins
        over = sum(sorted(int(lengths[members].sum()) for members in bins)[: len(bins) - count])
        while over > 0 and len(window) > 1:
            over -= int(lengths[window.pop()])


def _fill(
    bins: list[list[int]],
    ahead: range,
    lengths: np.ndarray,
    kinds: np.ndarray,
    shares: np.ndarray,
    capacity: int,
    taken: np.ndarray,
) -> None:
    """Put into bins what fits of the examples ahead, of kinds that are below their share of the bins' examples."""
    rooms = [capacity - int(lengths[members].sum()) for members in bins]
    counts = np.bincount(kinds[[m for members in bins for m in members]], minlength=len(shares)).tolist()
    amount = sum(counts)
    for example in ahead:
        size, kind = int(lengths[example]), int(kinds[example])
        if taken[example] or counts[kind] + 0.5 > shares[kind] * (amount + 1):
            continue
        fitting = [(room, number) for number, room in enumerate(rooms) if room >= size]
        if fitting:
            room, number = min(fitting)
            bins[number].append(example)
            rooms[number] = room - size
            taken[example] = True
            counts[kind] += 1
            amount += 1
