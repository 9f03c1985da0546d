"""Does a model keep the documents of a pack apart? Asked before step 1, of the very model that trains.

Three packed passes over the first rows: as they are, with every other document's tokens changed (the documents between
must not move), and with all but the first changed (what the first ones move by is noise: nothing flows backwards). And
a few documents by themselves, which must say what they said in the pack. What is noise is measured, so that a leak
shows in 16 bits too: no mean of losses would tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from nbtune.errors import NbtuneError
from nbtune.events import Check

if TYPE_CHECKING:
    import torch

    from nbtune.data.batching.collate import Batch
    from nbtune.data.prepare.dataset import Dataset
    from nbtune.data.prepare.streaming_dataset import Arriving

_NAME = "packed equals unpacked"
# Relative movement of a token's last hidden state that is no leak, and what a document alone may differ by: sums of
# other shapes are rounded otherwise.
_STILL = {"float32": 1e-5, "float16": 2e-4, "bfloat16": 1e-3}
_ALIKE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
_MARGIN = 10  # times the noise that was measured
_FIRST = 4  # tokens at the start of a document: where attention, states and convolutions leak first
_ALONE = 4  # documents that are looked at by themselves, too

Rows = list[list[np.ndarray]]  # the ids of each document of each sequence


def packs_are_kept_apart(
    model: torch.nn.Module, dataset: Dataset | Arriving, batch: Batch, *, device: torch.device, fused: bool = False
) -> Check:
    """Return whether documents that share a sequence leave each other alone.

    Args:
        dataset, batch: a pack, and what it was made of.
        fused: how the run's loss asks the model, see `nbtune.train.inputs.model_inputs`.
    """
    import torch

    rows = _rows_of(dataset, batch)
    words = np.unique(np.concatenate([*chain(*rows)])) if rows else np.zeros(0, np.int32)
    if len(words) < 2:
        return Check(name=_NAME, passed=True, detail="the first pack holds one token: there is nothing to compare")
    look = _Look(model, device, fused, batch.input_ids.shape[1])
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _compared(look, rows, words)
    finally:
        model.train(training)


@dataclasses.dataclass(frozen=True)
class _Look:
    """Asks the model for the last hidden states of documents (or their logits, where it does not tell these)."""

    model: torch.nn.Module
    device: torch.device
    fused: bool
    length: int

    def packed(self, rows: Rows) -> list[list[torch.Tensor]]:
        """Return `[tokens, size]` of each document of each sequence."""
        from nbtune.data.batching.collate import pack

        numbers = iter(range(sum(map(len, rows))))
        states = self._states(pack(_dataset(rows), [[next(numbers) for _ in row] for row in rows], self.length))
        cut = [states[b].split([*map(len, row), states.shape[1] - sum(map(len, row))]) for b, row in enumerate(rows)]
        return [list(parts[:-1]) for parts in cut]

    def alone(self, document: np.ndarray) -> torch.Tensor:
        """Return `[tokens, size]`."""
        from nbtune.data.batching.collate import collate

        return self._states(collate(_dataset([[document]]), [0]))[0, : len(document)]

    def _states(self, batch: Batch) -> torch.Tensor:
        from nbtune.models.accelerate.detect import causal_lm, decoder
        from nbtune.train.inputs import model_inputs

        inputs = model_inputs(batch, self.device, fused=self.fused)
        for name in ("labels", "loss_rows", "loss_labels", "loss_weights", "loss_only"):
            inputs.pop(name, None)
        inner: Any = decoder(causal_lm(self.model))
        if inner is None:
            return self.model(**inputs, use_cache=False).logits  # type: ignore[no-any-return]
        return inner(**inputs, use_cache=False, return_dict=True).last_hidden_state  # type: ignore[no-any-return]


def _compared(look: _Look, rows: Rows, words: np.ndarray) -> Check:
    alone = [(row[k], b, k) for b, row in enumerate(rows) for k in range(len(row))][:_ALONE]
    apart = [look.alone(document) for document, _, _ in alone]
    try:
        truth = look.packed(rows)
        others = look.packed([[_changed(d, words) if k % 2 == 0 else d for k, d in enumerate(row)] for row in rows])
        later = look.packed([[_changed(d, words) if k else d for k, d in enumerate(row)] for row in rows])
    except NbtuneError:
        raise
    except Exception as error:  # whatever a family's code says of a pack, it cannot take one
        if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error):
            raise
        said = " ".join(str(error).split())[:200]
        return Check(name=_NAME, passed=False, detail=f"a packed pass ended with {type(error).__name__}: {said}")
    kind = str(truth[0][0].dtype).removeprefix("torch.")
    still, alike = _STILL.get(kind, 1e-3), _ALIKE.get(kind, 1e-1)
    odd = [(k, b) for b, row in enumerate(rows) for k in range(1, len(row), 2)]
    moved = max(median(_moved(others[b][k][:_FIRST], truth[b][k][:_FIRST])) for k, b in odd)
    noise = max(median(_moved(later[b][0], truth[b][0])) for b in range(len(rows)))
    differs = [(k, median(_moved(truth[b][k], found))) for (_, b, k), found in zip(alone, apart, strict=True)]
    first, behind = (max((d for k, d in differs if (k > 0) == after), default=0.0) for after in (False, True))
    kept = noise <= alike and moved <= max(still, _MARGIN * noise)
    same = first <= alike and behind <= max(alike, _MARGIN * first)
    detail = f"a document moves by {moved:.1e} when its neighbour is another (noise {noise:.1e}), and differs by "
    detail += f"{max(first, behind):.1e} from itself alone ({kind}, of 1)"
    return Check(name=_NAME, passed=kept and same, detail=detail)


def _moved(ours: torch.Tensor, theirs: torch.Tensor) -> list[float]:
    """Return |ours − theirs| / |theirs| of each token; infinite where something is no number."""
    ours, theirs = ours.float(), theirs.float()
    found = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)
    return [float("inf") if value != value else value for value in found.tolist()]


def _changed(document: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return other ids, each of them one of `words`: sorted, each once."""
    steps = 1 + np.arange(len(document)) % (len(words) - 1)
    return words[(np.searchsorted(words, document) + steps) % len(words)]


def _rows_of(dataset: Dataset | Arriving, batch: Batch) -> Rows:
    """Return a batch's documents in as many sequences as it has, two or more in each: one that is
    by itself is halved."""
    room = batch.input_ids.shape[1]
    rows: Rows = [[]]
    for document in _ids(dataset, batch):
        if sum(map(len, rows[-1])) + len(document) > room:
            rows.append([])
        rows[-1].append(document)
    halved = [np.array_split(row[0], 2) if len(row) == 1 else row for row in rows[: batch.input_ids.shape[0]]]
    return [row for row in halved if len(row) > 1 and all(map(len, row))]


def _ids(dataset: Dataset | Arriving, batch: Batch) -> Iterator[np.ndarray]:
    for example in batch.examples:
        yield dataset.arrays(example)[0]


def _dataset(rows: Rows) -> Dataset:
    from nbtune.data.prepare.dataset import Builder

    builder = Builder(["probe"])
    for number, document in enumerate(chain(*rows)):
        builder.add(document.astype(np.int32), np.ones(len(document), bool), 0, number)
    return builder.build()
