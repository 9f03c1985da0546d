"""Importance matrices as llama.cpp's `llama-imatrix` writes them, in both of its formats.

    GGUF (since 2025): of each weight ``NAME.in_sum2`` (n, columns), sums of squared inputs, and ``NAME.counts`` (n, 1)
    before: int32 entries, then of each int32 length, NAME, int32 calls, int32 values, fp32 values (means · calls)

n is 1, or the number of a mixture's experts, whose mean is taken.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch

from nbtune.errors import ExportError
from nbtune.export.gguf.tensors import GgufTensor

_MOST = 2**31  # bytes of one entry: more is no importance matrix


def read_importance(path: str | Path) -> dict[str, torch.Tensor]:
    """Return how strongly each column of each weight is felt: weight's name in GGUF → fp32 (columns,); of a mixture's
    older file (n · columns,).

    Raises:
        ExportError: it is no such file, or is damaged.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            newer = file.read(4) == b"GGUF"
            file.seek(0)
            found = dict(_newer(path) if newer else _older(file, path.stat().st_size))
    except OSError as error:
        raise ExportError(f"{path.name} cannot be read: {error.strerror or error}", place=path.name) from error
    except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise _odd(path) from error
    if not found or not all(bool(torch.isfinite(values).all()) for values in found.values()):
        raise _odd(path)
    return found


def _odd(path: Path) -> ExportError:
    return ExportError(
        f"{path.name} is no importance matrix of llama.cpp, or a damaged one",
        place=path.name,
        fix="make it with `llama-imatrix -m MODEL.gguf -f TEXT -o FILE`, of this model.",
    )


def _newer(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from gguf import GGUFReader

    arrays = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in GGUFReader(path).tensors}
    for name, sums in arrays.items():
        if name.endswith(".in_sum2"):
            counts = arrays[name.removesuffix("in_sum2") + "counts"].reshape(-1, 1)
            felt = sums.reshape(counts.shape[0], -1).sum(0) / max(counts.sum(), 1.0)
            yield name.removesuffix(".in_sum2"), torch.from_numpy(felt.astype(np.float32))


def _older(file: IO[bytes], size: int) -> Iterator[tuple[str, torch.Tensor]]:
    for _ in range(_number(file, size)):
        name = _whole(file, _number(file, 4096)).decode()
        calls, count = _number(file, _MOST), _number(file, size // 4)
        values = np.frombuffer(_whole(file, 4 * count), "<f4") / max(calls, 1)
        yield name, torch.from_numpy(values.astype(np.float32))


def _number(file: IO[bytes], most: int) -> int:
    (number,) = struct.unpack("<i", _whole(file, 4))
    if not 0 <= number <= most:
        raise ValueError(number)
    return int(number)


def _whole(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends early")
    return data


def fitted(importance: Mapping[str, torch.Tensor], tensors: Sequence[GgufTensor]) -> dict[str, torch.Tensor]:
    """Return of each of a file's tensors how strongly its columns are felt, by the tensor's name.

    Args:
        importance: by names of weights (`nbtune.export.importance_matrix`), or by those in GGUF (`read_importance`).

    Raises:
        ExportError: it is of another model.
    """
    found = {}
    for tensor in tensors:
        values = importance.get(tensor.name, importance.get(tensor.source))
        if values is None:
            continue
        columns = tensor.shape[-1]
        if values.numel() % columns:
            raise _of_another(f"{tensor.name} has {columns} columns, and {values.numel()} are told of it")
        found[tensor.name] = values.float().reshape(-1, columns).mean(0)
    if importance and not found:
        raise _of_another("it tells of none of the model's weights")
    return found


def _of_another(why: str) -> ExportError:
    return ExportError(f"the importance matrix is of another model: {why}", fix="measure it on this model.")
