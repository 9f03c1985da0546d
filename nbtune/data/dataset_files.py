"""A dataset that is written while it grows, as the .npy files that it is later read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nbtune.data.dataset import Dataset

__all__ = ["DatasetFiles"]

_HEADER = 128  # bytes kept free for the header of a .npy file, whose shape is known last
_KINDS = {"ids": np.int32, "trained": np.bool_, "starts": np.int64, "source_of": np.int32, "row_of": np.int64}


class DatasetFiles:
    """`<folder>/<name>-<array>.npy` for each array of a dataset; they can be read as such once they are closed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._files = {array: _Column(folder / f"{name}-{array}.npy", kind) for array, kind in _KINDS.items()}
        self._files["starts"].append(np.zeros(1, np.int64))
        self._folder, self._name, self._tokens = folder, name, 0

    def append(self, part: Dataset) -> Dataset:
        """Writes examples behind the others; returns them as they lie on disk."""
        columns: dict[str, Any] = {a: getattr(part, a) for a in ("ids", "trained", "source_of", "row_of")}
        if part.weight_of is not None:  # of all parts, or of none
            if "weight_of" not in self._files:
                self._files["weight_of"] = _Column(self._folder / f"{self._name}-weight_of.npy", np.float32)
            columns["weight_of"] = part.weight_of
        read = {array: self._files[array].append(values) for array, values in columns.items()}
        self._files["starts"].append(part.starts[1:] + self._tokens)
        self._tokens += int(part.starts[-1])
        return Dataset(**read, starts=part.starts, sources=part.sources, weights=part.weights)

    def close(self) -> None:
        """Writes the headers."""
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
        told = {"descr": np.lib.format.dtype_to_descr(self._kind), "fortran_order": False, "shape": (self._count,)}
        text = repr(told).encode().ljust(_HEADER - 11) + b"\n"
        self._handle.seek(0)
        self._handle.write(np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text)
        self._handle.close()
