"""Which sequences make up a step, of a dataset that is still arriving.

The first epoch goes through the examples as they arrive: that order was drawn before. Packs are made of groups of
examples, so that a pack depends only on the examples of its group. Later epochs are shuffled anew.
"""

from __future__ import annotations

import numpy as np

from nbtune.data.arriving import Arriving
from nbtune.data.packing import best_fit

__all__ = ["Arrivals"]

GROUP = 4096  # examples that are packed together


class Arrivals:
    """Sequences (lists of example numbers) by step.

    Args:
        dataset: its first examples may be there.
        per_step: sequences of an optimizer step, over all processes.
        capacity: tokens of a pack; 0: every example is a sequence of its own.
        seed: None keeps the order.
    """

    def __init__(self, dataset: Arriving, per_step: int, capacity: int, seed: int | None) -> None:
        self.dataset, self.per_step, self.capacity, self.seed = dataset, per_step, capacity, seed
        self._packs: list[list[int]] = []
        self._packed = self._groups = 0  # examples and groups in them
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def step(self, k: int) -> list[list[int]]:
        """The sequences of step k; waits until they are there."""
        first, last = k * self.per_step, (k + 1) * self.per_step
        if self._count(last) >= last:
            return [self._sequence(i) for i in range(first, last)]
        count = self._count(None)
        epoch, inside = divmod(k, -(-count // self.per_step))
        first = inside * self.per_step
        places = range(first, min(first + self.per_step, count))
        if epoch == 0 or self.seed is None:
            return [self._sequence(i) for i in places]
        if self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng([self.seed, epoch]).permutation(count)
        return [self._sequence(int(self._epoch[1][i])) for i in places]

    def sequences(self) -> list[list[int]]:
        """All of an epoch; waits for the last."""
        return [self._sequence(i) for i in range(self._count(None))]

    def _sequence(self, number: int) -> list[int]:
        return self._packs[number] if self.capacity else [number]

    def _count(self, wanted: int | None) -> int:
        """How many sequences there are; waits for `wanted` of them, or for all."""
        if not self.capacity:
            return self.dataset.wait(wanted)
        while wanted is None or len(self._packs) < wanted:
            ready = self.dataset.wait(self._packed + GROUP)
            size = min(GROUP, ready - self._packed)
            if not size:
                break
            self._pack(self._packed, self._packed + size)
        return len(self._packs)

    def _pack(self, first: int, last: int) -> None:
        packs = [[first + i for i in p] for p in best_fit(self.dataset.lengths_of(first, last), self.capacity)]
        if self.seed is not None:
            order = np.random.default_rng([self.seed, 0, self._groups]).permutation(len(packs))
            packs = [packs[i] for i in order]
        self._packs += packs
        self._packed, self._groups = last, self._groups + 1
