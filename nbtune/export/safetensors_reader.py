"""A model's tensors on disk, read one by one or some rows at a time, never all at once.

The safetensors package sees that a file is whole and says what is in it; the numbers are read with plain reads, because
of a mapped file every page that was once looked at counts as this process's memory.
"""

from __future__ import annotations

import json
import struct
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nbtune.errors import ExportError
from nbtune.export.source import read_json
from nbtune.untrusted import harmless

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}


def _shards(index: Path) -> list[str]:
    """Return the files that an index names: in its own folder, and nowhere else.

    Raises:
        ExportError: it names none, or one of another folder.
    """
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise ExportError("it names no files of weights", place=str(index), fix="fetch the model again.")
    for file in where.values():
        if Path(file).name != file or "\\" in file or file in ("", ".", ".."):
            raise ExportError(
                f"it names {harmless(file[:200], line=True)!r}, which lies outside of its folder, and is not followed",
                place=str(index),
                fix="put the file beside it, and name it so.",
            )
    return sorted(set(where.values()))


class Weights:
    """The tensors of a folder of safetensors files, by name.

    A tensor's bytes are read when it is asked for, from any thread.

    Args:
        folder: has ``<stem>.safetensors``, or ``<stem>.safetensors.index.json`` and its shards.
        stem: ``"model"`` or ``"adapter_model"``.

    Raises:
        ExportError: there are no such files, one is missing, or one is not whole.
    """

    def __init__(self, folder: Path, stem: str = "model") -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        self._raw: dict[str, _RawFile] = {}
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            files = _shards(index)
        elif (folder / f"{stem}.safetensors").is_file():
            files = [f"{stem}.safetensors"]
        else:
            raise _no_weights(folder, stem)
        for file in files:
            self._add(file)

    def _add(self, file: str) -> None:
        path = self.folder / file
        try:
            self._open[file] = safe_open(str(path), framework="pt")
        except FileNotFoundError:
            raise ExportError(
                "a file of the weights is missing", place=str(path), fix="fetch the model again."
            ) from None
        except (SafetensorError, OSError) as error:
            raise ExportError(f"the weights are not whole ({error})", place=str(path), fix="fetch it again.") from None
        self._raw[file] = _RawFile(path)
        for name in self._open[file].keys():  # noqa: SIM118 (not a dict)
            self._where[name] = file

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._open.clear()
        for raw in self._raw.values():
            raw.file.close()
        self._raw.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return the dtype as safetensors calls it: ``"F32"``, ``"BF16"``, ``"F16"``, ``"F8_E4M3"``, ..."""
        return str(self._slice(name).get_dtype())

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor, as it is stored."""
        read = self._raw[self._where[name]].read(name, 0, None)
        return self._open[self._where[name]].get_tensor(name) if read is None else read

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return rows ``[start:stop]`` of a tensor of at least one dimension, as stored."""
        if start == 0 and stop >= self.shape(name)[0]:
            return self.get(name)
        read = self._raw[self._where[name]].read(name, start, stop)
        return self._slice(name)[start:stop] if read is None else read

    def equal(self, one: str, other: str) -> bool:
        """Return whether two tensors hold the same numbers, some rows at a time."""
        shape = self.shape(one)
        if shape != self.shape(other):
            return False
        step = rows_per_chunk(shape)
        starts = range(0, shape[0], step)
        return all(torch.equal(self.rows(one, k, k + step), self.rows(other, k, k + step)) for k in starts)

    def must_be_finite(self) -> None:
        """Raise an `ExportError` that names the first tensor with NaN or infinity in it."""
        for name in self:
            shape = self.shape(name)
            step = rows_per_chunk(shape) if shape else 1
            for start in range(0, shape[0] if shape else 1, step):
                part = self.rows(name, start, start + step) if shape else self.get(name)
                finite(name, part.float(), str(self.folder))

    def _slice(self, name: str) -> Any:
        return self._open[self._where[name]].get_slice(name)


class _RawFile:
    """One safetensors file, read by offsets (https://github.com/huggingface/safetensors#format)."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with this object, at the latest)
        weakref.finalize(self, self.file.close)
        size = struct.unpack("<Q", self.file.read(8))[0]
        self.start = 8 + size
        self.entries: dict[str, Any] = json.loads(self.file.read(size))

    def read(self, name: str, first: int, last: int | None) -> torch.Tensor | None:
        """Return rows ``[first:last]`` of a tensor, or all of it; None for a dtype that is not read so."""
        entry = self.entries[name]
        dtype, shape = _DTYPES.get(entry["dtype"]), list(entry["shape"])
        if dtype is None:
            return None
        begin, end = entry["data_offsets"]
        if last is not None:
            row = (end - begin) // max(shape[0], 1)
            last = min(last, shape[0])
            begin, end, shape[0] = begin + first * row, begin + last * row, last - first
        data = torch.empty(end - begin, dtype=torch.uint8)
        self._fill(memoryview(data.numpy()), self.start + begin)
        return data.view(dtype).reshape(shape)

    def _fill(self, room: memoryview, at: int) -> None:
        with self._lock:
            self.file.seek(at)
            while room:
                count = self.file.readinto(room)
                if not count:
                    raise ExportError("the weights end too early", place=str(self.path), fix="fetch the model again.")
                room = room[count:]


def finite(name: str, tensor: torch.Tensor, place: str) -> torch.Tensor:
    """Return the tensor as it is.

    Args:
        name: what it is called.
        place: whose it is.

    Raises:
        ExportError: it holds NaN or infinity: nobody can use that, in any format.
    """
    if not bool(tensor.isfinite().all()):
        raise ExportError(
            f"the weight {name!r} holds NaN or infinity",
            place=place,
            fix="train again with a lower `learning_rate`, or go back to an earlier checkpoint.",
        )
    return tensor


def rows_per_chunk(shape: tuple[int, ...], limit: int = 64 << 20) -> int:
    """Return how many rows of a tensor of `shape` make at most `limit` bytes in fp32 (at least one)."""
    row = 4
    for size in shape[1:]:
        row *= size
    return max(1, limit // max(row, 1))


def _no_weights(folder: Path, stem: str) -> ExportError:
    if not folder.is_dir():
        return ExportError("the folder is not there", place=str(folder), fix="see where the model is, and try again.")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return ExportError(
            "the weights are pickled (.bin), and nbtune only reads safetensors",
            place=str(folder),
            fix="load the model with transformers and save_pretrained() it once; that writes safetensors.",
        )
    return ExportError(f"there is no {stem}.safetensors", place=str(folder), fix="see that the folder is whole.")
