"""Tokens and labels of all examples, flat in memory: one array of ids, one of what is trained, one of starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["IGNORED", "Builder", "Dataset", "Example"]

IGNORED = -100


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
    ) -> None:
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
        """ids int32 [n] and trained bool [n] of an example, without a copy."""
        start, end = self.starts[index], self.starts[index + 1]
        return self.ids[start:end], self.trained[start:end]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, int64."""
        return np.diff(self.starts)

    def take(self, indices: Any) -> Dataset:
        """The examples of `indices`, in that order."""
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
        )


class Builder:
    """Collects examples; `build()` makes the dataset."""

    def __init__(self, sources: Sequence[str], weights: Sequence[float] = ()) -> None:
        self._sources, self._weights = sources, weights
        self._ids: list[np.ndarray] = []
        self._trained: list[np.ndarray] = []
        self._lengths: list[int] = []
        self._source_of: list[int] = []
        self._row_of: list[int] = []

    def add(self, ids: np.ndarray, trained: np.ndarray, source: int, row: int) -> None:
        """One example: ids int32 [n], trained bool [n]."""
        self._ids.append(ids)
        self._trained.append(trained)
        self._lengths.append(len(ids))
        self._source_of.append(source)
        self._row_of.append(row)

    def __len__(self) -> int:
        return len(self._lengths)

    def build(self) -> Dataset:
        """The dataset of what was added."""
        empty = not self._ids
        return Dataset(
            np.zeros(0, np.int32) if empty else np.concatenate(self._ids),
            np.zeros(0, bool) if empty else np.concatenate(self._trained),
            np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)]).astype(np.int64),
            np.asarray(self._source_of, np.int32),
            np.asarray(self._row_of, np.int64),
            self._sources,
            self._weights,
        )
