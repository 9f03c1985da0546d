"""In what order, and how often, the examples of several sources are seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nbtune.data.prepare.dataset import Dataset
from nbtune.spec import MixSpec


@dataclass(frozen=True)
class Mixture:
    """What an epoch is made of: `draws` examples, of which each source gets its share.

    `shares` is None where every example is seen once.
    """

    draws: int
    shares: tuple[float, ...] | None = None


def mixture(dataset: Dataset, mix: MixSpec) -> Mixture:
    """Return the mixture of a dataset's sources, by their weights and sizes.

    With `temperature` T a source of n rows (or tokens) weighs weight · n^(1/T): 1 leaves the sizes as they are, a large
    one makes them all the same (Raffel et al. 2020, "Exploring the limits of transfer learning", 3.5.2).
    """
    weights = np.asarray(dataset.weights, float)
    rows = np.bincount(dataset.source_of, minlength=len(weights)).astype(float)
    tokens = np.bincount(dataset.source_of, weights=dataset.lengths, minlength=len(weights))
    plain = len(set(dataset.weights)) <= 1 and mix.temperature is None and mix.by == "rows"
    if mix.stop == "once" or plain or (mix.by == "times" and (weights == 1).all()):
        return Mixture(len(dataset))
    weights = np.where(rows > 0, weights, 0)
    size = tokens if mix.by == "tokens" else rows
    if mix.temperature is not None:
        weights = weights * size ** (1 / mix.temperature)
    if mix.by == "times":
        weights = weights * rows
    elif mix.by == "tokens":  # a share of the tokens is a share of the rows, times how long they are
        weights = weights / np.maximum(tokens / np.maximum(rows, 1), 1e-9)
    shares = weights / weights.sum()
    draws = float(len(dataset)) if mix.by != "times" else float(weights.sum())
    present = shares > 0
    if mix.stop == "first_exhausted":
        draws = math.floor((rows[present] / shares[present]).min() + 1e-9)
    elif mix.stop == "all_exhausted":
        draws = math.ceil((rows[present] / shares[present]).max() - 1e-9)
    return Mixture(max(1, round(draws)), tuple(float(share) for share in shares))


def epoch_order(
    count: int,
    seed: int | None,
    epoch: int,
    source_of: np.ndarray,
    weights: Sequence[float] | None,
    *,
    in_turn: bool = False,
) -> np.ndarray:
    """Return the order of an epoch of `count` draws, int64; the same for the same arguments.

    With equal weights every example once. Else each source gets its share of the draws, and its examples are gone
    through in their own shuffled order, over and over, going on where the epoch before stopped.

    Args:
        seed: None keeps the order of the rows.
        source_of: int32 [examples], each example's source.
        weights: one per source, relative; None: every example once.
        in_turn: one source after the other, instead of mixed.
    """
    if weights is None or (len(set(weights)) <= 1 and count == len(source_of)):
        if seed is None:
            return np.arange(count)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        return order[np.argsort(source_of[order], kind="stable")] if in_turn else order
    begun, ended = quotas(epoch * count, weights), quotas((epoch + 1) * count, weights)
    drawn = []
    for source, (first, last) in enumerate(zip(begun, ended, strict=True)):
        members = np.flatnonzero(source_of == source)
        if not len(members) or first == last:
            continue
        rounds = []
        for lap in range(first // len(members), (last - 1) // len(members) + 1):
            rng = np.random.default_rng([seed or 0, 1 + source, lap])
            rounds.append(members if seed is None else rng.permutation(members))
        drawn.append(np.concatenate(rounds)[first % len(members) :][: last - first])
    order = np.concatenate(drawn)
    return order if in_turn else np.random.default_rng([seed or 0, epoch]).permutation(order)


def bucketed(drawn: np.ndarray, lengths: np.ndarray, per_step: int, seed: Sequence[int]) -> np.ndarray:
    """Return an order in which the examples of a step are of like length: draws are sorted in windows of 64 steps,
    whose steps are shuffled; a last step of fewer examples stays last.

    Args:
        drawn: int64 [draws], examples in a shuffled order.
        lengths: tokens per example.
    """
    rng, ordered = np.random.default_rng(seed), []
    for first in range(0, len(drawn), 64 * per_step):
        window = drawn[first : first + 64 * per_step]
        window = window[np.argsort(lengths[window], kind="stable")]
        whole = len(window) // per_step * per_step
        ordered.append(rng.permutation(window[:whole].reshape(-1, per_step)).ravel())
        ordered.append(window[whole:])
    return np.concatenate(ordered)


def quotas(count: int, weights: Sequence[float]) -> list[int]:
    """Return how many of the first `count` draws each source gets: never fewer for a greater count, and never off its
    share by more than about one (Webster's method: the j-th draw of a source is due at (j + 1/2) / share)."""
    shares = np.asarray(weights, float) / np.sum(weights)
    counts = np.floor(count * shares + 0.5).astype(np.int64)
    due = np.where(shares > 0, shares, np.nan)
    while counts.sum() < count:
        counts[int(np.nanargmin((counts + 0.5) / due))] += 1
    while counts.sum() > count:
        last = (counts - 0.5) / due
        last[counts == 0] = np.nan
        counts[len(last) - 1 - int(np.nanargmax(last[::-1]))] -= 1
    return [int(q) for q in counts]
