"""In what order, and how often, the examples of several sources are seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["epoch_order", "quotas"]


def epoch_order(
    count: int, seed: int | None, epoch: int, source_of: np.ndarray, weights: Sequence[float] | None
) -> np.ndarray:
    """The order of an epoch of `count` draws, int64; the same for the same arguments.

    With equal weights every example once. Else each source gets its share of the draws, and its examples are gone
    through in their own shuffled order, over and over, going on where the epoch before stopped.

    Args:
        seed: None keeps the order of the rows.
        source_of: int32 [count], each example's source.
        weights: one per source, relative; None: every example once.
    """
    if weights is None or len(set(weights)) <= 1:
        if seed is None:
            return np.arange(count)
        return np.random.default_rng([seed, epoch]).permutation(count)
    shares = quotas(count, weights)
    drawn = []
    for source, quota in enumerate(shares):
        members = np.flatnonzero(source_of == source)
        if not len(members) or not quota:
            continue
        rounds, done = [], epoch * quota
        for lap in range(done // len(members), (done + quota - 1) // len(members) + 1):
            rng = np.random.default_rng([seed or 0, 1 + source, lap])
            rounds.append(members if seed is None else rng.permutation(members))
        drawn.append(np.concatenate(rounds)[done % len(members) :][:quota])
    order = np.concatenate(drawn)
    return np.random.default_rng([seed or 0, epoch]).permutation(order)


def quotas(count: int, weights: Sequence[float]) -> list[int]:
    """`count` split by weights into whole numbers that add up to it (largest remainders)."""
    exact = np.asarray(weights, float) / np.sum(weights) * count
    whole = np.floor(exact).astype(int)
    for source in np.argsort(-(exact - whole), kind="stable")[: count - int(whole.sum())]:
        whole[source] += 1
    return [int(q) for q in whole]
