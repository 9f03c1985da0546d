"""Does a model keep the documents of a pack apart? Asked of a small copy by a plan, of the loaded model before step 1.

Three packed passes over a few rows: as they are, with every other document's tokens changed (the documents between must
not move), and with all but the first changed (what the first ones move by is noise: nothing flows backwards). And a few
documents by themselves, which must say what they said in the pack.

What counts as a movement is measured, so that a leak shows in 16 bits and rounding is not taken for one: the same
change is made to documents that run together, as if they were one. That is how far a leak moves them; what stays far
below is none. What a document by itself may differ by is at least ten times what it differs by beside another row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from nbtune.errors import NbtuneError
from nbtune.models.abilities import Claim

if TYPE_CHECKING:
    import torch

    from nbtune.data.batching.collate import Batch
    from nbtune.data.prepare.dataset import Dataset
    from nbtune.data.prepare.streaming_dataset import Arriving
    from nbtune.models.trial import Trial

# Relative movement of a token's last hidden state that is no leak, and what a document alone may differ by: sums of
# other shapes are rounded otherwise.
_STILL = {"float32": 1e-5, "float16": 2e-4, "bfloat16": 1e-3}
_ALIKE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
_PART = {"float32": 0.0, "float16": 0.02, "bfloat16": 0.05}  # of a leak's movement that is none: routers flip
_MARGIN = 10  # times the noise that was measured
_FIRST = 4  # tokens at the start of a document: where attention, states and convolutions leak first
_ALONE = 4  # documents that are looked at by themselves, too
_SEQUENCES = 2  # of a pack that are looked at
_TOKENS = 8192  # of each of them: five passes stay side by side, and a plan counts one step
_SMALL = ((13, 9, 11, 7), (5, 17, 6, 12))  # lengths of documents that a small copy is given

Rows = list[list[np.ndarray]]  # the ids of each document of each sequence


def packs_are_kept_apart(
    model: torch.nn.Module, dataset: Dataset | Arriving, batch: Batch, *, device: torch.device, fused: bool = False
) -> Claim:
    """Return whether documents that share a sequence leave each other alone.

    Args:
        dataset, batch: a pack, and what it was made of.
        fused: how the run's loss asks the model, see `nbtune.train.inputs.model_inputs`.
    """
    rows = _rows_of(dataset, batch)[:_SEQUENCES]
    words = np.unique(np.concatenate([*chain(*rows)])) if rows else np.zeros(0, np.int32)
    if len(words) < 2:
        return Claim(words="the first pack holds one token: there is nothing to compare")
    longest = max(sum(map(len, row)) for row in rows)
    return _asked(_Look(model, device, fused, min(batch.input_ids.shape[1], max(_TOKENS, longest))), rows, words)


def small_packs_are_kept_apart(trial: Trial, *, fused: bool = False) -> Claim:
    """Return whether a model's structure keeps documents apart, asked of its small copy; a window, also beyond it.

    Args:
        fused: as of `packs_are_kept_apart`.
    """
    import torch

    from nbtune.models.accelerate.sliding_windows import has_windows, shortened

    model = trial.model
    if model is None:
        return Claim(words=trial.why)
    config: Any = model.config
    words = np.arange(1, config.get_text_config().vocab_size, dtype=np.int32)
    random = np.random.default_rng(0)
    rows = [[random.choice(words, length) for length in lengths] for lengths in _SMALL]
    look = _Look(model, torch.device("cpu"), fused, max(map(sum, _SMALL)))
    claim = _asked(look, rows, words)
    if claim.holds and has_windows(model):
        with shortened(model, trial.layers):
            claim = _asked(look, rows, words)
    return claim


@dataclasses.dataclass(frozen=True)
class _Look:
    """Asks the model for the last hidden states of documents (or their logits, where it does not tell these)."""

    model: torch.nn.Module
    device: torch.device
    fused: bool
    length: int

    def packed(self, rows: Rows, *, joined: bool = False) -> list[list[torch.Tensor]]:
        """Return `[tokens, size]` of each document of each sequence; `joined`: the model is told that they are one."""
        from nbtune.data.batching.collate import pack

        sequences = [[np.concatenate(row)] for row in rows] if joined else rows
        numbers = iter(range(sum(map(len, sequences))))
        states = self._states(
            pack(_dataset(sequences), [[next(numbers) for _ in row] for row in sequences], self.length)
        )
        cut = [states[b].split([*map(len, row), states.shape[1] - sum(map(len, row))]) for b, row in enumerate(rows)]
        return [list(parts[:-1]) for parts in cut]

    def alone(self, *documents: np.ndarray) -> torch.Tensor:
        """Return `[tokens, size]` of the first of some documents that are rows of their own."""
        from nbtune.data.batching.collate import collate

        together = collate(_dataset([[*documents]]), list(range(len(documents))))
        return self._states(together)[0, : len(documents[0])]

    def _states(self, batch: Batch) -> torch.Tensor:
        from nbtune.models.accelerate.detect import causal_lm, decoder
        from nbtune.models.accelerate.lm_head import has_head
        from nbtune.train.inputs import model_inputs

        inputs = model_inputs(batch, self.device, fused=self.fused, labels=False)
        lm = causal_lm(self.model)
        inner: Any = decoder(lm)
        if inner is None:
            return self.model(**inputs, use_cache=False).logits  # type: ignore[no-any-return]
        if self.fused and has_head(lm):  # as nbtune's own head asks
            return inner(**inputs, use_cache=False, return_dict=True).last_hidden_state  # type: ignore[no-any-return]
        hidden: list[torch.Tensor] = []  # a model's own head may hand on less: Bloom's keeps where documents begin
        handle = inner.register_forward_hook(lambda _module, _inputs, output: hidden.append(output[0]))
        try:
            self.model(**inputs, use_cache=False)
        finally:
            handle.remove()
        return hidden[0]


def _asked(look: _Look, rows: Rows, words: np.ndarray) -> Claim:
    """Return the verdict on some packs, with the model in the mode in which it was."""
    import torch

    from nbtune.models.accelerate.layer_trace import evaluating

    with evaluating(look.model), torch.no_grad():
        return _compared(look, rows, words)


def _compared(look: _Look, rows: Rows, words: np.ndarray) -> Claim:
    try:
        truth = look.packed(rows)
        changed = _with_others(rows, words, lambda k: k % 2 == 0)
        others = look.packed(changed)
        later = look.packed(_with_others(rows, words, lambda k: k > 0))
        joined = look.packed(rows, joined=True)
        joined_others = look.packed(changed, joined=True)
    except NbtuneError:
        raise
    except Exception as error:  # whatever a family's code says of a pack, it cannot take one
        if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error):
            raise
        cause = " ".join(str(error).split())[:200]
        return Claim(holds=False, words=f"a packed pass ended with {type(error).__name__}: {cause}")
    kind = str(truth[0][0].dtype).removeprefix("torch.")
    odd = [(b, k) for b, row in enumerate(rows) for k in range(1, len(row), 2)]
    moved = max(_start(others[b][k], truth[b][k]) for b, k in odd)
    leak = median(_start(joined_others[b][k], joined[b][k]) for b, k in odd)
    backwards = max(median(_moved(later[b][0], truth[b][0])) for b in range(len(rows)))
    noise = max(_start(new, old) for b in range(len(rows)) for new, old in _stretches(later[b][0], truth[b][0]))
    still = max(_STILL.get(kind, 1e-3), _PART.get(kind, 0.0) * leak)
    # rounding is given room, but none that a leak would fit into
    limit = max(still, 2 * noise, min(_MARGIN * noise, leak / 2))
    plainly = f"a row's numbers change by {moved:.1g} when its neighbours do, by {leak:.1g} if it saw them"
    detail = f"{plainly} (of 1; rounding of {kind}: {noise:.1g})"
    shows = leak > still and leak > 4 * noise
    if backwards > _ALIKE.get(kind, 1e-1) or (moved > limit and (shows or not noise)):
        return Claim(holds=False, words=detail)
    if not shows:
        return Claim(words=f"that cannot be told here: {detail}")
    return _like_itself(look, rows, truth, plainly, detail)


def _like_itself(look: _Look, rows: Rows, truth: list[list[torch.Tensor]], plainly: str, detail: str) -> Claim:
    """Return whether a few documents of a pack say what they say alone; where they do not, with all numbers."""
    chosen = [(row[k], b, k) for b, row in enumerate(rows) for k in range(len(row))][:_ALONE]
    apart = [look.alone(document) for document, _, _ in chosen]
    beside = [look.alone(document, chosen[i - 1][0]) for i, (document, _, _) in enumerate(chosen)]
    spread = max(median(_moved(found, there)) for found, there in zip(beside, apart, strict=True))
    differs = [(k, median(_moved(truth[b][k], found))) for (_, b, k), found in zip(chosen, apart, strict=True)]
    first, behind = (max((d for k, d in differs if (k > 0) == after), default=0.0) for after in (False, True))
    kind = str(apart[0].dtype).removeprefix("torch.")
    usual = _ALIKE.get(kind, 1e-1)  # rows of a batch that change each other by more than rounding are no measure
    alike = max(usual, min(_MARGIN * spread, _MARGIN * usual))
    holds = first <= alike and behind <= max(alike, _MARGIN * first)
    return Claim(holds=holds, words=plainly if holds else f"{detail}, without neighbours by {max(first, behind):.1g}")


def _with_others(rows: Rows, words: np.ndarray, which: Callable[[int], bool]) -> Rows:
    return [[_changed(d, words) if which(k) else d for k, d in enumerate(row)] for row in rows]


def _start(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return by how much a document's first tokens have moved."""
    return float(median(_moved(ours[:_FIRST], theirs[:_FIRST])))


def _stretches(ours: torch.Tensor, theirs: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return as many tokens at a time as `_start` looks at."""
    return zip(ours.split(_FIRST), theirs.split(_FIRST), strict=True)


def _moved(ours: torch.Tensor, theirs: torch.Tensor) -> list[float]:
    """Return |ours − theirs| / |theirs| of each token; infinite where something is no number."""
    ours, theirs = ours.float(), theirs.float()
    distances = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)
    return [float("inf") if value != value else value for value in distances.tolist()]


def _changed(document: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return other ids, each of them one of `words`: sorted, each once."""
    steps = 1 + np.arange(len(document)) % (len(words) - 1)
    return words[(np.searchsorted(words, document) + steps) % len(words)]


def _rows_of(dataset: Dataset | Arriving, batch: Batch) -> Rows:
    """Return a batch's documents in as many sequences as it has, two or more in each: one that is by itself is halved.
    Of long sequences the beginnings of documents, and of so many that all have a few tokens."""
    room = batch.input_ids.shape[1]
    rows: Rows = [[]]
    for document in _ids(dataset, batch):
        if sum(map(len, rows[-1])) + len(document) > room:
            rows.append([])
        rows[-1].append(document)
    halved = [np.array_split(row[0], 2) if len(row) == 1 else row for row in rows[: batch.input_ids.shape[0]]]
    return [_shorter(row) for row in halved if len(row) > 1 and all(map(len, row))]


def _shorter(row: list[np.ndarray]) -> list[np.ndarray]:
    if sum(map(len, row)) <= _TOKENS:
        return row
    row = row[: _TOKENS // (2 * _FIRST)]
    return [document[: _TOKENS // len(row)] for document in row]


def _ids(dataset: Dataset | Arriving, batch: Batch) -> Iterator[np.ndarray]:
    for example in batch.examples:
        yield dataset.arrays(example)[0]


def _dataset(rows: Rows) -> Dataset:
    from nbtune.data.prepare.dataset import Builder

    builder = Builder(["probe"])
    for number, document in enumerate(chain(*rows)):
        builder.add(document.astype(np.int32), np.ones(len(document), bool), 0, number)
    return builder.build()
