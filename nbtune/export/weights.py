"""A model's tensors on disk, read one by one or some rows at a time, never all at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ExportError
from .source import read_json

__all__ = ["Weights", "rows_per_chunk"]


class Weights:
    """The tensors of a folder of safetensors files, by name.

    Files stay mapped while this is open; a tensor's bytes are read when it is asked for.

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
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            files = sorted(set(read_json(index)["weight_map"].values()))
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
        for name in self._open[file].keys():  # noqa: SIM118 (not a dict)
            self._where[name] = file

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._open.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The dtype as safetensors calls it: ``"F32"``, ``"BF16"``, ``"F16"``, ``"F8_E4M3"``, ..."""
        return str(self._slice(name).get_dtype())

    def get(self, name: str) -> torch.Tensor:
        """A tensor, as it is stored."""
        return self._open[self._where[name]].get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start:stop]`` of a tensor of at least one dimension, as stored."""
        if start == 0 and stop >= self.shape(name)[0]:
            return self.get(name)
        return self._slice(name)[start:stop]

    def _slice(self, name: str) -> Any:
        return self._open[self._where[name]].get_slice(name)


def rows_per_chunk(shape: tuple[int, ...], limit: int = 64 << 20) -> int:
    """How many rows of a tensor of `shape` make at most `limit` bytes in fp32 (at least one)."""
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
