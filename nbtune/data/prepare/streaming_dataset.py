"""A dataset whose examples arrive while the first of them are already learnt from.

The order is fixed beforehand (`nbtune.data.prepare.prepare`), so what is the k-th example does not depend on how
fast they come; whoever asks for one that is not there waits for it.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nbtune.data.prepare.dataset import IGNORED, KINDS, Dataset, Example


class Arriving:
    """Examples by number, as `Dataset`; what needs all of them waits until the last has arrived.

    Args:
        sources: names; `weights` one each.
        longest: no example has more tokens.
        planned: how many examples are expected, and `planned_tokens` in them.
    """

    def __init__(
        self,
        sources: Sequence[str],
        weights: Sequence[float],
        *,
        longest: int,
        planned: int,
        planned_tokens: int = 0,
    ) -> None:
        self.planned_tokens = planned_tokens
        self.sources, self.weights = tuple(sources), tuple(weights) or (1.0,) * len(sources)
        self.longest, self.planned = longest, planned
        self._parts: list[Dataset] = []
        self._starts = [0]
        self._whole: Dataset | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    @classmethod
    def arrived(cls, whole: Dataset, **limits: int) -> Arriving:
        """Make one of which all is there already; `limits`: longest, planned, planned_tokens."""
        made = cls(whole.sources, whole.weights, **limits)
        made.finish(whole)
        return made

    def add(self, part: Dataset) -> None:
        """Add more examples, behind those that are there."""
        with self._changed:
            self._parts.append(part)
            self._starts.append(self._starts[-1] + len(part))
            self._changed.notify_all()

    def finish(self, whole: Dataset) -> None:
        """Say that no more will come; `whole` has the same examples and replaces the parts."""
        with self._changed:
            self._whole, self._parts = whole, []
            self._starts = [0, len(whole)]
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Say that no more will come, because of an error: who waits gets it."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    @property
    def complete(self) -> bool:
        """Whether no more will come."""
        return self._whole is not None

    @property
    def ready(self) -> int:
        """How many examples are there now."""
        return self._starts[-1]

    def parts(self) -> list[Dataset]:
        """Return what has arrived so far, in order."""
        with self._changed:
            return list(self._parts) if self._whole is None else [self._whole]

    def wait(self, count: int | None = None) -> int:
        """Wait for `count` examples (None: for all); return how many there are.

        Raises:
            DataError: the rest could not be prepared.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._whole is not None
                    or self._error is not None
                    or (count is not None and self._starts[-1] >= count)
                )
            )
            if self._error is not None:
                raise self._error
            return self._starts[-1]

    def whole(self) -> Dataset:
        """Return all examples, once they are there."""
        self.wait()
        assert self._whole is not None
        return self._whole

    def at_most(self, count: int) -> int:
        """Return how many examples there are, at most `count`; waits for so many only."""
        return min(count, self.wait(count))

    def some(self, count: int, together: int = 1) -> list[int]:
        """Return the first `count` examples, by number; they arrive well mixed."""
        return list(range(self.at_most(count * together)))

    def source_name(self, index: int) -> str:
        """Return the source of an example."""
        part, inner = self._find(index)
        return self.sources[part.source_of[inner]]

    def __len__(self) -> int:
        return self.wait()

    def __getitem__(self, index: int) -> Example:
        if index < 0:
            return self.whole()[index]
        ids, trained = self.arrays(index)
        part, inner = self._find(index)
        labels = np.where(trained, ids, IGNORED)
        source = self.sources[part.source_of[inner]]
        return Example(ids.tolist(), labels.tolist(), source, int(part.row_of[inner]))

    def __iter__(self) -> Iterator[Example]:
        index = 0
        while self.wait(index + 1) > index:
            yield self[index]
            index += 1

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids int32 [n] and trained bool [n] of an example, without a copy."""
        part, inner = self._find(index)
        return part.arrays(inner)

    def weight(self, index: int) -> float | None:
        """Return what `Dataset.weight` does."""
        part, inner = self._find(index)
        return part.weight(inner)

    def value(self, index: int) -> float | None:
        """Return what `Dataset.value` does."""
        part, inner = self._find(index)
        return part.value(inner)

    def steps(self, index: int) -> np.ndarray | None:
        """Return what `Dataset.steps` does."""
        part, inner = self._find(index)
        return part.steps(inner)

    def lengths_of(self, first: int, last: int) -> np.ndarray:
        """Return the tokens per example first..last, int64 [last - first]; they must be there."""
        lengths = []
        while first < last:
            part, inner = self._find(first)
            count = min(last - first, len(part) - inner)
            lengths.append(np.diff(part.starts[inner : inner + count + 1]))
            first += count
        return np.concatenate(lengths) if lengths else np.zeros(0, np.int64)

    def _find(self, index: int) -> tuple[Dataset, int]:
        if self.wait(index + 1) <= index:
            raise IndexError(index)
        with self._changed:
            if self._whole is not None:
                return self._whole, index
            number = bisect_right(self._starts, index) - 1
            return self._parts[number], index - self._starts[number]

    def __getattr__(self, name: str) -> Any:
        if name in KINDS or name in ("columns", "lengths", "take"):
            return getattr(self.whole(), name)
        raise AttributeError(name)


_HEADER = 128  # bytes kept free for the header of a .npy file, whose shape is known last


class DatasetFiles:
    """`<folder>/<name>-<array>.npy` for each array of a dataset; they can be read as such once they are closed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name, self._tokens = folder, name, 0
        self._files: dict[str, _Column] = {}

    def append(self, part: Dataset) -> Dataset:
        """Write examples behind the others; return them as they lie on disk. All parts have the same arrays."""
        columns, begun = part.columns(), bool(self._files)
        for name in columns.keys() - self._files.keys():
            self._files[name] = _Column(self._folder / f"{self._name}-{name}.npy", KINDS[name])
        if not begun:
            self._files["starts"].append(np.zeros(1, np.int64))
        self._files["starts"].append(columns.pop("starts")[1:] + self._tokens)
        self._tokens += int(part.starts[-1])
        there = {name: self._files[name].append(values) for name, values in columns.items()}
        return Dataset(**there, starts=part.starts, sources=part.sources, weights=part.weights)

    def close(self) -> None:
        """Write the headers."""
        for file in self._files.values():
            file.close()


class _Column:
    def __init__(self, path: Path, kind: Any) -> None:
        self._path, self._kind, self._count = path, np.dtype(kind), 0
        self._handle = path.open("wb")
        self._handle.write(b"\0" * _HEADER)

    def append(self, values: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(values, self._kind)
        at = _HEADER + self._count * self._kind.itemsize
        self._handle.write(values.tobytes())
        self._handle.flush()
        self._count += len(values)
        return np.memmap(self._path, self._kind, "r", at, values.shape) if len(values) else values

    def close(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self._kind), "fortran_order": False, "shape": (self._count,)}
        text = repr(header).encode().ljust(_HEADER - 11) + b"\n"
        self._handle.seek(0)
        self._handle.write(np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text)
        self._handle.close()
