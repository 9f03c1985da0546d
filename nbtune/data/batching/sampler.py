"""Batches of a step: which examples, and in which order.

Step k's batches depend on the dataset, the seed and k alone, so a run resumes exactly by asking for step k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from nbtune.data.batching.collate import Batch, collate, pack
from nbtune.data.batching.mismatched import mismatched
from nbtune.data.batching.mixture import Mixture, bucketed, epoch_order, mixture, quotas
from nbtune.data.batching.packing import best_fit, in_windows
from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.streaming_dataset import Arriving
from nbtune.spec import MixSpec

Order = Literal["shuffled", "bucketed", "given", "in_turn", "short_first"]


class BatchPlan:
    """All batches of a run, by step.

    Args:
        dataset: examples.
        micro_batch_size: sequences that go through the model at once.
        gradient_accumulation_steps: micro-batches per optimizer step.
        seed: of the order; another order every epoch.
        packing: several examples share a sequence of `sequence_len` tokens, without seeing each other.
        sequence_len: tokens per packed sequence; also the limit without packing.
        pad_to_multiple: lengths are padded to a multiple of it.
        pad_id: the id that padding gets (it has no loss and is not attended to).
        shuffle: False keeps the order of the rows; as `order="given"`.
        order: of the examples (`RunSpec.order`).
        mix: what the weights of several sources mean.
        together: so many examples in a row belong together (2 for pairs) and share a micro-batch; the sizes then count
            such groups.
        bucket: `trained_rows` is padded to a multiple of it.
        rank: which of the `ranks` processes this is; each gets its own share of every step.
        per_step: sequences of a step over all processes, however many these are; unset: as many for each as for one.
        even: every process gets equally many micro-batches, `Batch.idle` ones where there are no more rows.
        mismatch: batches have `Batch.mismatched`.

    Raises:
        ValueError: the dataset is empty, or an example is longer than `sequence_len`.
    """

    def __init__(
        self,
        dataset: Dataset | Arriving,
        *,
        micro_batch_size: int,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        packing: bool = False,
        sequence_len: int | None = None,
        pad_to_multiple: int = 8,
        pad_id: int = 0,
        shuffle: bool = True,
        order: Order = "shuffled",
        mix: MixSpec | None = None,
        together: int = 1,
        bucket: int = 64,
        rank: int = 0,
        ranks: int = 1,
        per_step: int | None = None,
        even: bool = False,
        mismatch: bool = False,
    ) -> None:
        if not dataset.at_most(1):
            raise ValueError("the dataset is empty")
        if isinstance(dataset, Dataset) and len(dataset) % together:
            raise ValueError(f"the dataset does not consist of groups of {together}")
        self._units = _grouped(dataset, together) if isinstance(dataset, Dataset) and together > 1 else dataset
        self._together = together
        longest = self._units.longest if packing else dataset.longest
        if isinstance(dataset, Arriving) and packing:
            longest *= together
        self.dataset, self.packing, self.seed = dataset, packing, seed
        self.arrangement: Order = order if shuffle else "given"
        self.shuffle = self.arrangement != "given"
        self.sequence_len = sequence_len or longest
        if longest > self.sequence_len:
            raise ValueError(f"an example has {longest} tokens, sequence_len is {self.sequence_len}")
        self.micro_batch_size, self.gradient_accumulation_steps = micro_batch_size, gradient_accumulation_steps
        self.pad_to_multiple, self.pad_id, self.bucket = pad_to_multiple, pad_id, bucket
        self.rank, self.ranks, self._even, self._mismatch = rank, ranks, even, mismatch
        self._per_step = per_step or micro_batch_size * gradient_accumulation_steps * ranks
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._arrivals: Arrivals | None = None
        if isinstance(dataset, Arriving):
            capacity = self.sequence_len if packing else 0
            self._arrivals = Arrivals(dataset, self._per_step, capacity, seed if self.shuffle else None, together)
            self.mixture = Mixture(1)
        else:
            self.mixture = mixture(self._units, mix or MixSpec())  # type: ignore[arg-type]

    @cached_property
    def bins(self) -> list[list[int]]:
        """Examples per sequence: one each, or packs. Where a mix is packed, those of `_laps` epochs' draws, step by
        step: the packs of a step hold what is drawn one after another."""
        if self._arrivals is not None:
            return self._arrivals.sequences()
        if not self.packing:
            return [[i] for i in range(len(self._units))]
        if self._laps == 1:
            return best_fit(self._units.lengths, self.sequence_len)
        seed, data = self.seed if self.shuffle else None, self._units
        mix = self.mixture
        laps = [epoch_order(mix.draws, seed, lap, data.source_of, mix.shares) for lap in range(self._laps)]
        draws = np.concatenate(laps)
        packs = in_windows(data.lengths[draws], data.source_of[draws], self.sequence_len, self._per_step)
        return [draws[members].tolist() for members in packs]

    @cached_property
    def _laps(self) -> int:
        """How many epochs of draws are packed together: enough to see every row of every source of a mix, at most 8."""
        shares, count = self.mixture.shares, self.mixture.draws
        if not self.packing or shares is None:
            return 1
        rows = np.bincount(self._units.source_of, minlength=len(shares))
        needed = [-(-int(n) // q) for n, q in zip(rows, quotas(count, shares), strict=True) if q]
        return min(max([2, *needed]), 8)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every example is seen once (the last may be smaller); in a mix, as many draws. Of
        a dataset that is arriving: as it is planned, so that nothing waits."""
        if isinstance(self.dataset, Arriving):
            return max(1, -(-self._planned(self.dataset) // self._per_step))
        sequences = len(self.bins) if self.packing else self.mixture.draws
        return max(1, -(-sequences // (self._per_step * self._laps)))

    def _planned(self, dataset: Arriving) -> int:
        """Return how many sequences an epoch has, as far as is known before all have arrived: it must not depend on
        when one asks."""
        if not self.packing:
            return dataset.planned
        return -(-dataset.planned_tokens // int(self.sequence_len * 0.995))

    def order(self, epoch: int) -> np.ndarray:
        """Return the bins of an epoch in their order, int64 [bins]."""
        if self._order[0] != epoch:
            self._order = epoch, self._drawn(epoch)
        return self._order[1]

    def _drawn(self, epoch: int) -> np.ndarray:
        seed, source_of = self.seed if self.shuffle else None, self._units.source_of
        if self.packing and self._laps > 1:  # the first time as drawn, then the steps in another order
            whole = len(self.bins) // self._per_step
            steps = np.arange(whole) if epoch == 0 else epoch_order(whole, seed, epoch, source_of, None)
            inside = np.arange(self._per_step)
            last = np.arange(whole * self._per_step, len(self.bins))
            return np.concatenate([(steps[:, None] * self._per_step + inside).ravel(), last])
        if self.packing:
            return epoch_order(len(self.bins), seed, epoch, source_of, None)
        mix, in_turn = self.mixture, self.arrangement == "in_turn"
        drawn = epoch_order(mix.draws, seed, epoch, source_of, mix.shares, in_turn=in_turn)
        if self.arrangement == "short_first":
            return drawn[np.argsort(self._units.lengths[drawn], kind="stable")]
        if self.arrangement == "bucketed":
            return bucketed(drawn, self._units.lengths, self._per_step, [self.seed, epoch, 3])
        return drawn

    def step(self, k: int) -> list[Batch]:
        """Return this process's micro-batches of optimizer step k (0-based)."""
        size, chosen = self.micro_batch_size, self._sequences(k)
        mine = range(len(chosen))[self.rank :: self.ranks]
        batches = [self._batch(chosen, mine[i : i + size]) for i in range(0, len(mine), size)]
        if self._even:  # the first process has most
            missing = -(-len(chosen[:: self.ranks]) // size) - len(batches)
            batches += [self._batch(chosen, [0]).idle() for _ in range(missing)]
        return batches

    def divide(self, micro_batch_size: int) -> None:
        """Let fewer sequences go through the model at once from now on; steps have the same ones."""
        rows = self.micro_batch_size * self.gradient_accumulation_steps
        self.micro_batch_size, self.gradient_accumulation_steps = micro_batch_size, -(-rows // micro_batch_size)

    def _sequences(self, k: int) -> list[list[int]]:
        """Return the examples of each sequence of step k, of all processes."""
        per_step = self._per_step
        if self._arrivals is not None:
            return self._arrivals.step(k)
        # a lap of a packed mix is several epochs
        epoch, inside = divmod(k, self.steps_per_epoch if self._laps == 1 else -(-len(self.bins) // per_step))
        chosen = self.order(epoch)[inside * per_step : (inside + 1) * per_step].tolist()
        return [self.bins[b] for b in chosen]

    def __iter__(self) -> Any:
        """Yield the batches of one epoch, one after another (for evaluation)."""
        for k in range(self.steps_per_epoch):
            yield from self.step(k)

    def _batch(self, chosen: list[list[int]], places: Sequence[int]) -> Batch:
        """Return some of a step's sequences as a batch."""
        group, bins = self._together, [chosen[index] for index in places]
        bins = [[unit * group + i for unit in members for i in range(group)] for members in bins] if group > 1 else bins
        if self.packing:
            batch = pack(self.dataset, bins, self.sequence_len, self.pad_id, self.bucket, self.pad_to_multiple)
        else:
            examples = [e for b in bins for e in b]
            batch = collate(self.dataset, examples, self.pad_to_multiple, self.pad_id, self.bucket)
        return replace(batch, mismatched=self._mismatched(chosen, places)) if self._mismatch else batch

    def _mismatched(self, chosen: list[list[int]], places: Sequence[int]) -> Batch | None:
        starts = np.cumsum([0, *map(len, chosen)]).tolist()
        mine = [row for index in places for row in range(starts[index], starts[index + 1])]
        of_step = [example for members in chosen for example in members]
        return mismatched(self.dataset, of_step, mine, self.pad_to_multiple, self.bucket)


def _grouped(dataset: Dataset, together: int) -> Dataset:
    """Return the same tokens, with so many examples as one."""
    of = {"source_of": dataset.source_of[::together], "row_of": dataset.row_of[::together]}
    starts = dataset.starts[::together]
    return Dataset(dataset.ids, dataset.trained, starts, **of, sources=dataset.sources, weights=dataset.weights)


GROUP = 4096  # examples that are packed together


class Arrivals:
    """Sequences (lists of example numbers) by step.

    Args:
        dataset: its first examples may be there.
        per_step: sequences of an optimizer step, over all processes.
        capacity: tokens of a pack; 0: every example is a sequence of its own.
        seed: None keeps the order.
        together: examples of a unit; sequences hold the numbers of units.
    """

    def __init__(self, dataset: Arriving, per_step: int, capacity: int, seed: int | None, together: int = 1) -> None:
        self.dataset, self.per_step, self.capacity, self.seed = dataset, per_step, capacity, seed
        self._together = together
        self._packs: list[list[int]] = []
        self._packed = self._groups = 0  # examples and groups in them
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def step(self, k: int) -> list[list[int]]:
        """Return the sequences of step k; waits until they are there."""
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
        """Return all of an epoch; waits for the last."""
        return [self._sequence(i) for i in range(self._count(None))]

    def _sequence(self, number: int) -> list[int]:
        return self._packs[number] if self.capacity else [number]

    def _count(self, wanted: int | None) -> int:
        """Return how many sequences there are; waits for `wanted` of them, or for all."""
        if not self.capacity:
            return self._wait(wanted)
        while wanted is None or len(self._packs) < wanted:
            ready = self._wait(self._packed + GROUP)
            size = min(GROUP, ready - self._packed)
            if not size:
                break
            self._pack(self._packed, self._packed + size)
        return len(self._packs)

    def _wait(self, units: int | None) -> int:
        """Return how many units are there, once there are so many."""
        return self.dataset.wait(None if units is None else units * self._together) // self._together

    def _pack(self, first: int, last: int) -> None:
        lengths = self.dataset.lengths_of(first * self._together, last * self._together)
        lengths = lengths.reshape(-1, self._together).sum(1)
        packs = [[first + i for i in p] for p in best_fit(lengths, self.capacity)]
        if self.seed is not None:
            order = np.random.default_rng([self.seed, 0, self._groups]).permutation(len(packs))
            packs = [packs[i] for i in order]
        self._packs += packs
        self._packed, self._groups = last, self._groups + 1
