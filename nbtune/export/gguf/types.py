"""The types of GGUF files: which encoding each tensor of a file gets, and how it is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import ExportError
from .tensors import GgufTensor

__all__ = ["TYPES", "FileType", "encode", "encoded_bytes", "type_named"]


@dataclass(frozen=True)
class FileType:
    """One type of file.

    Args:
        name: as in the file's name.
        number: llama.cpp's ``general.file_type``.
        main: the encoding of most matrices.
    """

    name: str
    number: int
    main: str

    def encoding(self, tensor: GgufTensor, layers: int) -> str:
        """The encoding of `tensor` in this type of file."""
        if tensor.full:
            return "F32"
        return _fits(self.main, tensor.shape[-1])


TYPES: dict[str, FileType] = {
    kind.name: kind
    for kind in (
        FileType("f32", 0, "F32"),
        FileType("f16", 1, "F16"),
        FileType("bf16", 32, "BF16"),
        FileType("q8_0", 7, "Q8_0"),
        FileType("q4_0", 2, "Q4_0"),
        FileType("q4_1", 3, "Q4_1"),
        FileType("q5_0", 8, "Q5_0"),
        FileType("q5_1", 9, "Q5_1"),
    )
}


def type_named(name: str) -> FileType:
    """The type of that name, in any case.

    Raises:
        ExportError: there is none, with those there are.
    """
    kind = TYPES.get(name.lower())
    if kind is None:
        raise ExportError(f"there is no GGUF type {name!r}", fix=f"use one of {', '.join(TYPES)}.")
    return kind


def _fits(encoding: str, columns: int) -> str:
    """`encoding`, or the nearest whose blocks divide a row of `columns`."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block = GGML_QUANT_SIZES[GGMLQuantizationType[encoding]][0]
    return encoding if columns % block == 0 else "F16"


def encoded_bytes(encoding: str, shape: tuple[int, ...]) -> int:
    """How many bytes a tensor of `shape` takes in `encoding`."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[encoding]]
    count = 1
    for length in shape:
        count *= length
    return count // block * size


def encode(rows: torch.Tensor, encoding: str) -> np.ndarray[Any, Any]:
    """`rows` (fp32, the last dimension is a row) as the bytes of `encoding`."""
    if encoding == "F32":
        return rows.contiguous().flatten().view(torch.uint8).numpy()
    if encoding in ("F16", "BF16"):
        kind = torch.float16 if encoding == "F16" else torch.bfloat16
        return rows.to(kind).contiguous().flatten().view(torch.uint8).numpy()
    from gguf import GGMLQuantizationType, quants

    flat = rows.reshape(-1, rows.shape[-1]).contiguous().numpy()
    return quants.quantize(flat, GGMLQuantizationType[encoding]).reshape(-1)
