"""Tokens and labels of all examples, flat in memory: one array of ids, one of what is trained, one of starts."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

IGNORED = -100
KINDS: dict[str, Any] = {
    **{"ids": np.int32, "trained": np.bool_, "starts": np.int64, "source_of": np.int32, "row_of": np.int64},
    **{"value_of": np.float32, "token_values": np.float32, "weight_of": np.float32},  # of rows that have them
}


@dataclass(frozen=True, slots=True)
class Example:
    """What the model sees of one row (or of a window of it).

    `labels` are unshifted: the id where there is a loss, else -100.
    """

    input_ids: list[int]
    labels: list[int]
    source: str
    row: int


class Dataset:
    """Examples by number.

    Attributes:
        ids: int32 [tokens], all examples one after another.
        trained: bool [tokens].
        starts: int64 [examples + 1].
        sources: names of the sources; `source_of` int32 [examples], `row_of` int64 [examples].
        weights: one per source, for a mix.
        value_of: float32 [examples], what was judged: 1 better or good, 0 worse or bad; None for rows that judge not.
        token_values: float32 [tokens], NaN but at the last token of a judged step: 1 right, 0 wrong; None likewise.
        weight_of: float32 [examples], how often the losses of an example count; None: once.
    """

    def __init__(
        self,
        ids: np.ndarray,
        trained: np.ndarray,
        starts: np.ndarray,
        source_of: np.ndarray,
        row_of: np.ndarray,
        sources: Sequence[str],
        weights: Sequence[float] = (),
        *,
        value_of: np.ndarray | None = None,
        token_values: np.ndarray | None = None,
        weight_of: np.ndarray | None = None,
    ) -> None:
        self.weight_of = weight_of
        self.value_of, self.token_values = value_of, token_values
        self.ids, self.trained, self.starts = ids, trained, starts
        self.source_of, self.row_of = source_of, row_of
        self.sources = tuple(sources)
        self.weights = tuple(weights) or (1.0,) * len(self.sources)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        ids, trained = self.arrays(index)
        labels = np.where(trained, ids, IGNORED)
        return Example(ids.tolist(), labels.tolist(), self.sources[self.source_of[index]], int(self.row_of[index]))

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids int32 [n] and trained bool [n] of an example, without a copy."""
        start, end = self.starts[index], self.starts[index + 1]
        return self.ids[start:end], self.trained[start:end]

    def weight(self, index: int) -> float | None:
        """Return how often the losses of an example count; None where each counts once."""
        return None if self.weight_of is None else float(self.weight_of[index])

    def value(self, index: int) -> float | None:
        """Return what was judged of an example; None where nothing is."""
        return None if self.value_of is None else float(self.value_of[index])

    def steps(self, index: int) -> np.ndarray | None:
        """Return `token_values` of an example, float32 [n]; None where no steps are judged."""
        if self.token_values is None:
            return None
        return self.token_values[self.starts[index] : self.starts[index + 1]]

    def columns(self) -> dict[str, np.ndarray]:
        """Return the arrays that there are, by name."""
        return {name: array for name in KINDS if (array := getattr(self, name)) is not None}

    def whole(self) -> Dataset:
        """Return all examples: these."""
        return self

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, int64 [examples]."""
        return np.diff(self.starts)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(self.lengths.max()) if len(self) else 0

    def at_most(self, count: int) -> int:
        """Return how many examples there are, at most `count`."""
        return min(count, len(self))

    def some(self, count: int, together: int = 1) -> list[int]:
        """Return up to `count` (groups of `together`) examples, evenly spread, by number."""
        groups = len(self) // together
        chosen = np.unique(np.linspace(0, max(groups - 1, 0), min(groups, count)).astype(np.int64))
        return [int(group) * together + i for group in chosen for i in range(together)]

    def source_name(self, index: int) -> str:
        """Return the source of an example."""
        return str(self.sources[self.source_of[index]])

    def take(self, indices: Any) -> Dataset:
        """Return the examples of `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[indices]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        where = np.repeat(self.starts[indices] - starts[:-1], lengths) + np.arange(starts[-1])
        return Dataset(
            self.ids[where],
            self.trained[where],
            starts,
            self.source_of[indices],
            self.row_of[indices],
            self.sources,
            self.weights,
            value_of=None if self.value_of is None else self.value_of[indices],
            token_values=None if self.token_values is None else self.token_values[where],
            weight_of=None if self.weight_of is None else self.weight_of[indices],
        )


class Builder:
    """Collects examples; `build()` makes the dataset."""

    def __init__(self, sources: Sequence[str], weights: Sequence[float] = ()) -> None:
        self._sources, self._weights = sources, weights
        self._ids: list[np.ndarray] = []
        self._trained: list[np.ndarray] = []
        self._new: list[tuple[np.ndarray, np.ndarray]] = []
        self._lengths = array("q")
        self._source_of = array("i")
        self._row_of = array("q")
        self._values, self._weight_of = array("f"), array("f")
        self._steps: list[np.ndarray] = []

    def add(
        self,
        ids: np.ndarray,
        trained: np.ndarray,
        source: int,
        row: int,
        value: float | None = None,
        steps: np.ndarray | None = None,
        weight: float | None = None,
    ) -> None:
        """Add one example: ids int32 [n], trained bool [n]; what was judged of it, and of its tokens (float32 [n]); how
        often it counts (of all, or of none)."""
        if weight is not None:
            self._weight_of.append(weight)
        if value is not None:
            self._values.append(value)
        if steps is not None:
            self._steps.append(steps)
        self._new.append((ids, trained))
        self._lengths.append(len(ids))
        self._source_of.append(source)
        self._row_of.append(row)

    def seal(self) -> None:
        """Join what was added since: many small arrays cost more than their contents."""
        if self._new:
            self._ids.append(np.concatenate([ids for ids, _ in self._new]))
            self._trained.append(np.concatenate([trained for _, trained in self._new]))
            self._new = []

    def __len__(self) -> int:
        return len(self._lengths)

    def build(self) -> Dataset:
        """Return the dataset of what was added."""
        self.seal()
        starts = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.asarray(self._lengths, np.int64), out=starts[1:])
        ids, trained = np.empty(starts[-1], np.int32), np.empty(starts[-1], bool)
        at = 0
        for part_ids, part_trained in zip(self._ids, self._trained, strict=True):
            ids[at : at + len(part_ids)], trained[at : at + len(part_ids)] = part_ids, part_trained
            at += len(part_ids)
        source_of, row_of = np.asarray(self._source_of, np.int32), np.asarray(self._row_of, np.int64)
        values = np.asarray(self._values, np.float32) if len(self._values) else None
        steps = np.concatenate(self._steps) if self._steps else None
        weight_of = np.asarray(self._weight_of, np.float32) if len(self._weight_of) else None
        more = {"value_of": values, "token_values": steps, "weight_of": weight_of}
        return Dataset(ids, trained, starts, source_of, row_of, self._sources, self._weights, **more)
