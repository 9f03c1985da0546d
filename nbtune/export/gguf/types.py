"""The types of GGUF files: which encoding each tensor of a file gets, and how it is encoded.

The mixed types (``_s``, ``_m``, ``_l``) spend more bits where a model feels them most: on the head, on values, on the
way down of the MLP, on the first and last layers. Which tensor gets what is as people know it from llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nbtune.errors import ExportError
from nbtune.export.gguf.tensors import GgufTensor

_BLOCK = re.compile(r"^blk\.(\d+)\.(\w+)\.")
# What takes the place of an encoding whose blocks of 256 do not divide a row.
_SMALLER = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_CHUNK = 1 << 17  # values that are encoded at once: they stay in the processor's cache


@dataclass(frozen=True)
class Shape:
    """What a mix depends on: layers, query heads a key head, experts, and whether the embedding is the head too."""

    layers: int
    sharing: int = 1
    experts: int = 0
    tied: bool = False


@dataclass(frozen=True)
class FileType:
    """One type of file.

    Args:
        name: as in the file's name.
        number: llama.cpp's ``general.file_type``.
        main: the encoding of most matrices.
        values, down, out: encodings of the value projection, of the MLP's way down and of attention's output, where
            they are not `main`: functions of (layer, shape).
    """

    name: str
    number: int
    main: str
    values: Callable[[int, Shape], str] | None = None
    down: Callable[[int, Shape], str] | None = None
    out: str | None = None

    def wanted(self, tensor: GgufTensor, shape: Shape) -> str:
        """The encoding that this type has for `tensor`, whatever the length of its rows."""
        if tensor.full or self.main in ("F32", "F16", "BF16", "Q8_0"):
            return "F32" if tensor.full else self.main
        if tensor.name == "output.weight" or (tensor.name == "token_embd.weight" and shape.tied):
            return "Q6_K"
        match = _BLOCK.match(tensor.name)
        if match is None:
            return self.main
        layer, role = int(match[1]), match[2]
        if shape.experts == 8 and role in ("attn_k", "attn_v"):
            return "Q8_0"  # small beside eight experts, and felt by all of them
        if role in ("attn_v", "attn_qkv") and self.values:
            wanted = self.values(layer, shape)
        elif role == "attn_v":
            wanted = self.main
        else:
            wanted = ""
        if role == "attn_v" and shape.layers == 80 and wanted in ("Q3_K", "Q4_K"):
            wanted = "Q5_K"  # a 70B model's values are an eighth of its queries: cheap, and felt
        if wanted:
            return wanted
        if role in ("ffn_down", "ffn_down_exps", "ffn_down_shexp") and self.down:
            return self.down(layer, shape)
        if role == "attn_output":
            if shape.experts == 8 and self.main in ("Q2_K", "Q3_K", "Q4_K", "IQ4_NL", "IQ4_XS"):
                return "Q5_K"
            return self.out or self.main
        return self.main

    def encoding(self, tensor: GgufTensor, shape: Shape) -> str:
        """The encoding of `tensor` in this type of file."""
        return _fits(self.wanted(tensor, shape), tensor.shape[-1])


def _felt(layer: int, shape: Shape) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    eighth = shape.layers // 8
    return layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2


def _better(encoding: str, main: str) -> Callable[[int, Shape], str]:
    return lambda layer, shape: encoding if _felt(layer, shape) else main


def _first(part: int, encoding: str, main: str) -> Callable[[int, Shape], str]:
    return lambda layer, shape: encoding if layer < shape.layers // part else main


def _always(encoding: str) -> Callable[[int, Shape], str]:
    return lambda layer, shape: encoding


def _shared(encoding: str, main: str) -> Callable[[int, Shape], str]:
    """`encoding` where at least four query heads share a key head, and few values carry much."""
    return lambda layer, shape: encoding if shape.sharing >= 4 else main


def _up_to(count: int, encoding: str, main: str) -> Callable[[int, Shape], str]:
    return lambda layer, shape: encoding if layer < count else main


TYPES: dict[str, FileType] = {
    kind.name: kind
    for kind in (
        FileType("f32", 0, "F32"),
        FileType("f16", 1, "F16"),
        FileType("bf16", 32, "BF16"),
        FileType("q8_0", 7, "Q8_0"),
        FileType("q6_k", 18, "Q6_K"),
        FileType("q5_k_m", 17, "Q5_K", _better("Q6_K", "Q5_K"), _better("Q6_K", "Q5_K")),
        FileType("q5_k_s", 16, "Q5_K"),
        FileType("q5_1", 9, "Q5_1"),
        FileType("q5_0", 8, "Q5_0"),
        FileType("q4_k_m", 15, "Q4_K", _better("Q6_K", "Q4_K"), _better("Q6_K", "Q4_K")),
        FileType("q4_k_s", 14, "Q4_K", _up_to(4, "Q5_K", "Q4_K"), _first(8, "Q5_K", "Q4_K")),
        FileType("q4_1", 3, "Q4_1"),
        FileType("q4_0", 2, "Q4_0"),
        FileType("iq4_nl", 25, "IQ4_NL", _shared("Q5_K", "IQ4_NL"), _first(8, "Q5_K", "IQ4_NL")),
        FileType("iq4_xs", 30, "IQ4_XS", _shared("Q5_K", "IQ4_XS"), _first(8, "Q5_K", "IQ4_XS")),
        FileType("q3_k_l", 13, "Q3_K", _always("Q5_K"), _always("Q5_K"), "Q5_K"),
        FileType("q3_k_m", 12, "Q3_K", _up_to(2, "Q5_K", "Q4_K"), _first(16, "Q5_K", "Q4_K"), "Q4_K"),
        FileType("q3_k_s", 11, "Q3_K"),
        FileType("q2_k", 10, "Q2_K", _shared("Q4_K", "Q3_K"), _always("Q3_K"), "Q3_K"),
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
    if columns % _block(encoding)[0]:
        encoding = _SMALLER.get(encoding, encoding)
    return encoding if columns % _block(encoding)[0] == 0 else "F16"


def _block(encoding: str) -> tuple[int, int]:
    """(values, bytes) of a block."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[encoding]]


def encoded_bytes(encoding: str, shape: tuple[int, ...]) -> int:
    """How many bytes a tensor of `shape` takes in `encoding`."""
    block, size = _block(encoding)
    count = 1
    for length in shape:
        count *= length
    return count // block * size


def encode(
    rows: torch.Tensor, encoding: str, weights: torch.Tensor | None = None, pool: ThreadPoolExecutor | None = None
) -> np.ndarray[Any, Any]:
    """`rows` as the bytes of `encoding`.

    Args:
        rows: fp32 on any device, the last dimension is a row.
        weights: (columns,) of the squared errors (an importance matrix), for K-quants and iq4, or None.
        pool: threads to share the work, or None.
    """
    if encoding == "F32":
        return rows.contiguous().flatten().view(torch.uint8).cpu().numpy()
    if encoding in ("F16", "BF16"):
        kind = torch.float16 if encoding == "F16" else torch.bfloat16
        return rows.to(kind).contiguous().flatten().view(torch.uint8).cpu().numpy()
    parts = _parts(rows.reshape(-1, rows.shape[-1]).contiguous(), whole=rows.is_cuda)
    function = _encoder(encoding, weights)
    if pool is None:
        done = [function(part) for part in parts]
    else:
        done = list(pool.map(function, parts))
    return done[0] if len(done) == 1 else np.concatenate(done)


def _parts(rows: torch.Tensor, whole: bool) -> list[torch.Tensor]:
    limit = _CHUNK * 64 if whole else _CHUNK
    return list(rows.split(max(1, limit // rows.shape[1])))


def _encoder(encoding: str, weights: torch.Tensor | None) -> Callable[[torch.Tensor], np.ndarray[Any, Any]]:
    from nbtune.export.gguf.kquants import ENCODERS

    if encoding in ENCODERS:
        size, own = ENCODERS[encoding]

        def ours(part: torch.Tensor) -> np.ndarray[Any, Any]:
            weigh = None if weights is None else weights.to(part).expand_as(part).reshape(-1, size)
            return own(part.reshape(-1, size), weigh).cpu().numpy().reshape(-1)

        return ours
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[encoding]
    return lambda part: quants.quantize(part.cpu().numpy(), kind).reshape(-1)
