"""Batches of a step: which examples, padded or packed, with all that the loss and the attention need.

Step k's batches depend on the dataset, the seed and k alone, so a run resumes exactly by asking for step k.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from nbtune.data.arrivals import Arrivals
from nbtune.data.arriving import Arriving
from nbtune.data.dataset import IGNORED, Dataset
from nbtune.data.mixing import Mixture, bucketed, epoch_order, mixture, quotas
from nbtune.data.packing import best_fit
from nbtune.spec import MixSpec

__all__ = ["Batch", "BatchPlan", "collate", "pack"]

Order = Literal["shuffled", "bucketed", "given", "in_turn", "short_first"]


@dataclass(frozen=True)
class Batch:
    """What goes through the model at once. Tensors are torch, on the CPU.

    Attributes:
        input_ids: int64 [B, S].
        labels: int64 [B, S], unshifted; -100 where there is no loss.
        attention_mask: int64 [B, S], 1 = token; None in a pack or where nothing is padded.
        position_ids: int64 [B, S]; begins at 0 with every document of a pack.
        cu_seqlens: int32 [documents + 1], starts in the flattened B·S tokens, padding as documents of its own; None
            if not packed.
        max_seqlen: the longest document, None if not packed.
        num_tokens: tokens that are not padding.
        num_trained: labels that have a loss after the shift.
        trained_rows: int64 [R], flat positions (b·S + s) whose next token has a loss, padded with 0 to a bucket.
        trained_labels: int64 [R], the next tokens there; -100 in the padding.
        examples: int64, the dataset's numbers of what is in it.
        values: float32 [examples], what was judged of each: 1 better or good, 0 worse or bad; None for other rows.
            Pairs stand side by side: better, worse, better, worse, …
        token_values: float32 [B, S], NaN but at the last token of a judged step; None for other rows.
        idle_pass: nothing in it counts: it goes through the model because other processes' batches do.
    """

    input_ids: Any
    labels: Any
    attention_mask: Any
    position_ids: Any
    cu_seqlens: Any
    max_seqlen: int | None
    num_tokens: int
    num_trained: int
    trained_rows: Any
    trained_labels: Any
    examples: tuple[int, ...] = ()
    values: Any = None
    token_values: Any = None
    idle_pass: bool = False

    def to(self, device: Any, *, non_blocking: bool = True) -> Batch:
        """The batch with its tensors on `device`."""
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if hasattr(value := getattr(self, f.name), "to")
        }
        return replace(self, **moved)

    def unpacked(self, multiple: int = 8) -> Batch:
        """A pack's documents side by side instead: the same losses, if the model keeps documents apart.

        Documents without a loss (padding) are left out.
        """
        if self.cu_seqlens is None:
            return self
        flat_ids, flat_labels = self.input_ids.flatten().numpy(), self.labels.flatten().numpy()
        bounds = self.cu_seqlens.tolist()
        kept = [(a, b) for a, b in pairwise(bounds) if (flat_labels[a:b] != IGNORED).any()]
        width = _round_up(max((b - a for a, b in kept), default=1), multiple)
        ids = np.zeros((len(kept), width), np.int64)
        labels = np.full((len(kept), width), IGNORED, np.int64)
        mask = np.zeros((len(kept), width), np.int64)
        for row, (a, b) in enumerate(kept):
            ids[row, : b - a], labels[row, : b - a], mask[row, : b - a] = flat_ids[a:b], flat_labels[a:b], 1
        positions = np.broadcast_to(np.arange(width, dtype=np.int64), ids.shape).copy()
        bucket = len(self.trained_rows)
        return _finish(ids, labels, positions, mask, None, int(mask.sum()), bucket, list(self.examples))

    def idle(self) -> Batch:
        """The same shapes with nothing to learn: for a process that must do as many passes as the others."""
        labels, targets = self.labels.clone().fill_(IGNORED), self.trained_labels.clone().fill_(IGNORED)
        return replace(self, labels=labels, trained_labels=targets, num_tokens=0, num_trained=0, idle_pass=True)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for quick copies to a GPU."""
        pinned = {
            f.name: value.pin_memory() for f in fields(self) if hasattr(value := getattr(self, f.name), "pin_memory")
        }
        return replace(self, **pinned)


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
    ) -> None:
        if not dataset.at_most(1):
            raise ValueError("the dataset is empty")
        if together > 1 and (isinstance(dataset, Arriving) or len(dataset) % together):
            raise ValueError(f"the dataset does not consist of groups of {together}")
        self._units = _grouped(dataset, together) if isinstance(dataset, Dataset) and together > 1 else dataset
        self._together = together
        longest = self._units.longest if packing else dataset.longest
        self.dataset, self.packing, self.seed = dataset, packing, seed
        self.arrangement: Order = order if shuffle else "given"
        self.shuffle = self.arrangement != "given"
        self.sequence_len = sequence_len or longest
        if longest > self.sequence_len:
            raise ValueError(f"an example has {longest} tokens, sequence_len is {self.sequence_len}")
        self.micro_batch_size, self.gradient_accumulation_steps = micro_batch_size, gradient_accumulation_steps
        self.pad_to_multiple, self.pad_id, self.bucket = pad_to_multiple, pad_id, bucket
        self.rank, self.ranks, self._even = rank, ranks, even
        self._per_step = per_step or micro_batch_size * gradient_accumulation_steps * ranks
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._arrivals: Arrivals | None = None
        if isinstance(dataset, Arriving):
            capacity = self.sequence_len if packing else 0
            self._arrivals = Arrivals(dataset, self._per_step, capacity, seed if self.shuffle else None)
            self.mixture = Mixture(1)
        else:
            self.mixture = mixture(self._units, mix or MixSpec())  # type: ignore[arg-type]

    @cached_property
    def bins(self) -> list[list[int]]:
        """Examples per sequence: one each, or packs. Where a mix is packed, those of `_laps` epochs' draws."""
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
        return [draws[members].tolist() for members in best_fit(data.lengths[draws], self.sequence_len)]

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
        """Sequences of an epoch, as far as is known before all have arrived: it must not depend on when one asks."""
        if not self.packing:
            return dataset.planned
        return -(-dataset.planned_tokens // int(self.sequence_len * 0.995))

    @property
    def efficiency(self) -> float:
        """Share of tokens in packed sequences that are not padding; 1 if not packed."""
        if not self.packing:
            return 1.0
        tokens = int(self._units.lengths[np.concatenate(self.bins)].sum())
        return tokens / (len(self.bins) * self.sequence_len)

    def order(self, epoch: int) -> np.ndarray:
        """The bins of an epoch in their order, int64."""
        if self._order[0] != epoch:
            self._order = epoch, self._drawn(epoch)
        return self._order[1]

    def _drawn(self, epoch: int) -> np.ndarray:
        seed, source_of = self.seed if self.shuffle else None, self._units.source_of
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
        """This process's micro-batches of optimizer step k (0-based)."""
        size, chosen = self.micro_batch_size, self._sequences(k)
        mine = chosen[self.rank :: self.ranks]
        made = [self._batch(mine[i : i + size]) for i in range(0, len(mine), size)]
        if self._even:  # the first process has most
            missing = -(-len(chosen[:: self.ranks]) // size) - len(made)
            made += [self._batch(chosen[:1]).idle() for _ in range(missing)]
        return made

    def _sequences(self, k: int) -> list[list[int]]:
        """The examples of each sequence of step k, of all processes."""
        per_step = self._per_step
        if self._arrivals is not None:
            return self._arrivals.step(k)
        if self._laps == 1:
            epoch, inside = divmod(k, self.steps_per_epoch)
            chosen = self.order(epoch)[inside * per_step : (inside + 1) * per_step].tolist()
        else:  # laps do not end where steps do: one runs on into the next
            places = (divmod(place, len(self.bins)) for place in range(k * per_step, (k + 1) * per_step))
            chosen = [int(self.order(lap)[place]) for lap, place in places]
        return [self.bins[b] for b in chosen]

    def __iter__(self) -> Any:
        """The batches of one epoch, one after another (for evaluation)."""
        for k in range(self.steps_per_epoch):
            yield from self.step(k)

    def _batch(self, bins: list[list[int]]) -> Batch:
        group = self._together
        bins = [[unit * group + i for unit in members for i in range(group)] for members in bins] if group > 1 else bins
        if self.packing:
            return pack(self.dataset, bins, self.sequence_len, self.pad_id, self.bucket, self.pad_to_multiple)
        return collate(self.dataset, [e for b in bins for e in b], self.pad_to_multiple, self.pad_id, self.bucket)


def collate(
    dataset: Dataset | Arriving, examples: list[int], multiple: int = 8, pad_id: int = 0, bucket: int = 64
) -> Batch:
    """Examples side by side, padded on the right to the longest."""
    pairs = [dataset.arrays(i) for i in examples]
    width = _round_up(max(len(ids) for ids, _ in pairs), multiple)
    ids = np.full((len(pairs), width), pad_id, np.int64)
    labels = np.full((len(pairs), width), IGNORED, np.int64)
    mask = np.zeros((len(pairs), width), np.int64)
    for b, (row, trained) in enumerate(pairs):
        ids[b, : len(row)] = row
        labels[b, : len(row)] = np.where(trained, row, IGNORED)
        mask[b, : len(row)] = 1
    labels[:, 0] = IGNORED
    positions = np.broadcast_to(np.arange(width, dtype=np.int64), ids.shape).copy()
    made = _finish(ids, labels, positions, None if mask.all() else mask, None, int(mask.sum()), bucket, examples)
    return _judged(made, dataset, [(e, b, 0) for b, e in enumerate(examples)])


def pack(
    dataset: Dataset | Arriving,
    bins: list[list[int]],
    length: int,
    pad_id: int = 0,
    bucket: int = 64,
    multiple: int = 8,
) -> Batch:
    """Each bin's examples one after another in a sequence of `length` tokens (rounded up to `multiple`).

    A document's first token has no loss: nothing before it predicts it.
    """
    length = _round_up(length, multiple)
    ids = np.full((len(bins), length), pad_id, np.int64)
    labels = np.full((len(bins), length), IGNORED, np.int64)
    positions = np.zeros((len(bins), length), np.int64)
    starts, tokens, places = [], 0, []
    for b, members in enumerate(bins):
        at = 0
        for example in members:
            row, trained = dataset.arrays(example)
            end = at + len(row)
            ids[b, at:end] = row
            labels[b, at:end] = np.where(trained, row, IGNORED)
            labels[b, at] = IGNORED
            positions[b, at:end] = np.arange(len(row))
            starts.append(b * length + at)
            places.append((example, b, at))
            at = end
        tokens += at
        if at < length:  # padding is a document of its own: nobody attends to it
            positions[b, at:] = np.arange(length - at)
            starts.append(b * length + at)
    bounds = np.array([*starts, len(bins) * length], np.int32)
    made = _finish(ids, labels, positions, None, bounds, tokens, bucket, [e for m in bins for e in m])
    return _judged(made, dataset, places)


def _grouped(dataset: Dataset, together: int) -> Dataset:
    """The same tokens, with so many examples as one."""
    of = {"source_of": dataset.source_of[::together], "row_of": dataset.row_of[::together]}
    starts = dataset.starts[::together]
    return Dataset(dataset.ids, dataset.trained, starts, **of, sources=dataset.sources, weights=dataset.weights)


def _judged(batch: Batch, dataset: Dataset | Arriving, places: list[tuple[int, int, int]]) -> Batch:
    """The batch with what was judged of its examples; `places`: (example, row, first column)."""
    if isinstance(dataset, Arriving) or dataset.value_of is None:
        return batch
    import torch

    values = torch.from_numpy(dataset.value_of[list(batch.examples)])
    if dataset.token_values is None:
        return replace(batch, values=values)
    per_token = np.full(tuple(batch.input_ids.shape), np.nan, np.float32)
    for example, row, at in places:
        found = dataset.token_values[dataset.starts[example] : dataset.starts[example + 1]]
        per_token[row, at : at + len(found)] = found
    return replace(batch, values=values, token_values=torch.from_numpy(per_token))


def _finish(
    ids: np.ndarray,
    labels: np.ndarray,
    positions: np.ndarray,
    mask: np.ndarray | None,
    bounds: np.ndarray | None,
    tokens: int,
    bucket: int,
    examples: list[int],
) -> Batch:
    import torch

    following = np.full_like(labels, IGNORED)
    following[:, :-1] = labels[:, 1:]
    rows = np.flatnonzero(following != IGNORED)
    size = max(_round_up(len(rows), bucket), bucket)
    trained_rows, trained_labels = np.zeros(size, np.int64), np.full(size, IGNORED, np.int64)
    trained_rows[: len(rows)], trained_labels[: len(rows)] = rows, following.ravel()[rows]
    return Batch(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        attention_mask=None if mask is None else torch.from_numpy(mask),
        position_ids=torch.from_numpy(positions),
        cu_seqlens=None if bounds is None else torch.from_numpy(bounds),
        max_seqlen=None if bounds is None else int(np.diff(bounds).max()),
        num_tokens=tokens,
        num_trained=len(rows),
        trained_rows=torch.from_numpy(trained_rows),
        trained_labels=torch.from_numpy(trained_labels),
        examples=tuple(int(e) for e in examples),
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
