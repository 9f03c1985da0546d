"""The numbers of a GGUF file's tensors, decoded from whatever encoding by the gguf package, some rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbtune.models.gguf_file.header import Stored, refused

ROOM = 1 << 21  # numbers that a thread decodes at a time: 8 MiB as fp32, and some times that while they are


def can_decode(encoding: str) -> bool:
    """Return whether an encoding holds weights that can be decoded here."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    kind = GGMLQuantizationType[encoding]
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def values(stored: Stored, start: int = 0, count: int | None = None) -> Any:
    """Return rows of a tensor in fp32, (rows, columns): a stack's matrices lie one under the other.

    Args:
        stored: where it lies.
        start: the first row.
        count: how many; all from `start` on where it is None.

    Raises:
        SpecError: they cannot be read or decoded, or are no finite numbers.
    """
    from gguf import GGMLQuantizationType, quants

    columns = stored.shape[-1]
    rows = numbers_in(stored) // columns
    width = stored.bytes // rows
    count = rows - start if count is None else count
    with stored.file.open("rb") as file:
        file.seek(stored.start + start * width)
        raw = np.fromfile(file, np.uint8, count * width)
    if len(raw) != count * width:
        raise refused(stored.file, "it became shorter while it was read")
    with np.errstate(all="ignore"):
        try:
            decoded = quants.dequantize(raw.reshape(count, width), GGMLQuantizationType[stored.encoding])
        except NotImplementedError:
            raise refused(
                stored.file, f"it holds weights of type {stored.encoding}, which are not decoded", "Take another type."
            ) from None
    out = np.asarray(decoded, np.float32).reshape(count, columns)
    if not np.isfinite(out).all():
        raise refused(stored.file, "some of its weights are no finite numbers")
    return out


def numbers_in(stored: Stored) -> int:
    """Return how many numbers a tensor has."""
    total = 1
    for size in stored.shape:
        total *= size
    return total
