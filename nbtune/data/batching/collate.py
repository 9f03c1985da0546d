"""What goes through the model at once: examples side by side or packed, with what loss and attention need of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np

from nbtune.data.prepare.dataset import IGNORED, Dataset
from nbtune.data.prepare.streaming_dataset import Arriving


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
        values: float32 [examples], what was judged of each: 1 better (and its margin) or good, 0 worse or bad, or the
            number of its label; None for other rows.
            Pairs stand side by side: better, worse, better, worse, …
        token_values: float32 [B, S], NaN but at the last token of a judged step; None for other rows.
        ends: int64 [examples], the flat position of each one's last token; None for rows that judge nothing.
        idle_pass: nothing in it counts: it goes through the model because other processes' batches do.
        loss_weights: float32 [R], how often the loss of each of `trained_labels` counts; None: each once.
        example_weights: float32 [examples], likewise.
        mismatched: the prompts with other rows' answers (`nbtune.data.batching.mismatched`); None: not asked for.
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
    ends: Any = None
    idle_pass: bool = False
    loss_weights: Any = None
    example_weights: Any = None
    mismatched: Batch | None = None

    @property
    def weight(self) -> float:
        """What a loss over the batch's trained tokens is a mean over: their number, each as often as it counts."""
        if self.idle_pass:
            return 0
        return self.num_trained if self.loss_weights is None else float(self.loss_weights.double().sum())

    def to(self, device: Any, *, non_blocking: bool = True) -> Batch:
        """Return the batch with its tensors on `device`."""
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if hasattr(value := getattr(self, f.name), "to")
        }
        return replace(self, **moved)

    def unpacked(self, multiple: int = 8) -> Batch:
        """Return a pack's documents side by side instead: the same losses, if the model keeps documents apart.

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
        batch = _finish(ids, labels, positions, mask, None, int(mask.sum()), bucket, list(self.examples))
        if self.loss_weights is None:
            return batch
        flat = np.zeros(flat_ids.size + 1, np.float32)  # of each token, as of the row that predicts it
        flat[self.trained_rows.numpy()[: self.num_trained] + 1] = self.loss_weights.numpy()[: self.num_trained]
        weights = np.array([flat[a:b].max() for a, b in kept], np.float32)
        batch = _weighted(batch, weights[batch.trained_rows.numpy() // width])
        return replace(batch, example_weights=self.example_weights)

    def idle(self) -> Batch:
        """Return the same rows, of which nothing is learnt: for a process that must do as many passes as the others.

        They keep their labels: a mean over no token at all is no number, and no number times 0 is none either.
        """
        return replace(self, num_tokens=0, num_trained=0, idle_pass=True)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, for quick copies to a GPU."""
        pinned = {
            f.name: value.pin_memory() for f in fields(self) if hasattr(value := getattr(self, f.name), "pin_memory")
        }
        return replace(self, **pinned)


def collate(
    dataset: Dataset | Arriving, examples: list[int], multiple: int = 8, pad_id: int = 0, bucket: int = 64
) -> Batch:
    """Return examples side by side, padded on the right to the longest.

    >>> sources = nbtune.data.resolve(nbtune.spec.from_mapping({"data": "rows"}).data, {"rows": [{"text": "Ahoy!"}]})
    >>> spec, tokenizer = nbtune.spec.from_mapping({"data": "rows"}), nbtune.models.load_tokenizer("nbtune/tiny")
    >>> data = nbtune.data.prepare_data(sources, tokenizer, spec=spec, max_len=64, seed=0)
    >>> nbtune.data.collate(data.train, [0]).input_ids.shape
    torch.Size([1, 8])
    """
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
    batch = _finish(ids, labels, positions, None if mask.all() else mask, None, int(mask.sum()), bucket, examples)
    if (weights := _weights(dataset, examples)) is not None:
        batch = replace(
            _weighted(batch, weights[batch.trained_rows.numpy() // width]), example_weights=_tensor(weights)
        )
    return _judged(batch, dataset, [(e, b, 0) for b, e in enumerate(examples)])


def pack(
    dataset: Dataset | Arriving,
    bins: list[list[int]],
    length: int,
    pad_id: int = 0,
    bucket: int = 64,
    multiple: int = 8,
) -> Batch:
    """Return each bin's examples one after another in a sequence of `length` tokens (rounded up to `multiple`).

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
    examples = [e for m in bins for e in m]
    batch = _finish(ids, labels, positions, None, bounds, tokens, bucket, examples)
    if (weights := _weights(dataset, examples)) is not None:
        begins = np.array([b * length + at for _, b, at in places])
        owner = np.searchsorted(begins, batch.trained_rows.numpy(), side="right") - 1
        batch = replace(_weighted(batch, weights[owner]), example_weights=_tensor(weights))
    return _judged(batch, dataset, places)


def _judged(batch: Batch, dataset: Dataset | Arriving, places: list[tuple[int, int, int]]) -> Batch:
    """Return the batch with what was judged of its examples; `places`: (example, row, first column)."""
    values = [dataset.value(example) for example in batch.examples]
    if None in values:
        return batch
    width = batch.input_ids.shape[1]
    ends = [row * width + at + len(dataset.arrays(example)[0]) - 1 for example, row, at in places]
    batch = replace(batch, values=_tensor(np.array(values, np.float32)), ends=_tensor(np.array(ends, np.int64)))
    per_token = np.full(tuple(batch.input_ids.shape), np.nan, np.float32)
    for example, row, at in places:
        steps = dataset.steps(example)
        if steps is None:
            return batch
        per_token[row, at : at + len(steps)] = steps
    return replace(batch, token_values=_tensor(per_token))


def _weights(dataset: Dataset | Arriving, examples: Sequence[int]) -> np.ndarray | None:
    """Return float32 [examples]: how often each counts; None where each counts once."""
    weights = [dataset.weight(example) for example in examples]
    return None if None in weights else np.array(weights, np.float32)


def _weighted(batch: Batch, weights: np.ndarray) -> Batch:
    """Return the batch with a weight a trained row; the padding's is 0."""
    trained = batch.trained_labels.numpy() != IGNORED
    return replace(batch, loss_weights=_tensor(np.where(trained, weights, 0).astype(np.float32)))


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(values)


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
