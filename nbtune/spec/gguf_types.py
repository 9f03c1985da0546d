"""The types of GGUF files: what each is called, how large and how good it is, which encoding each of its tensors gets.

One line of `TYPES` is a type: Tab, form, command line and panels offer it, `nbtune.export` writes it. The mixed types
(``_s``, ``_m``, ``_l``) spend more bits where a model feels them most: on the head, on values, on the way down of the
MLP, on the first and last layers. Which tensor gets what is as people know it from llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nbtune.errors import ExportError

_BLOCK = re.compile(r"^blk\.(\d+)\.(\w+)\.")
_PLAIN = ("F32", "F16", "BF16", "Q8_0")  # every matrix in one encoding


class Tensor(Protocol):
    """What decides a tensor's encoding: its name in the file, and whether it stays in fp32 (`full`)."""

    @property
    def name(self) -> str: ...
    @property
    def full(self) -> bool: ...


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
        bits: of a weight, blocks' scales included, as the mix comes out for models of some billion parameters; a model
            with a small body and a large vocabulary comes out a little larger.
        quality: in a word: same, good, fair, rough.
        values, down, out: encodings of the value projection, of the MLP's way down and of attention's output, where
            they are not `main`: functions of (layer, shape).
        usual: whether panels offer it among the first.
    """

    name: str
    number: int
    main: str
    bits: float
    quality: str
    values: Callable[[int, Shape], str] | None = None
    down: Callable[[int, Shape], str] | None = None
    out: str | None = None
    usual: bool = False

    def wanted(self, tensor: Tensor, shape: Shape) -> str:
        """Return the encoding that this type has for `tensor`, whatever the length of its rows."""
        if tensor.full or self.main in _PLAIN:
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


def _felt(layer: int, shape: Shape) -> bool:
    """Return whether a layer is felt: of the first and the last eighth, or every third between."""
    eighth = shape.layers // 8
    return layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2


def _better(encoding: str, main: str) -> Callable[[int, Shape], str]:
    return lambda layer, shape: encoding if _felt(layer, shape) else main


def _first(part: int, encoding: str, main: str) -> Callable[[int, Shape], str]:
    return lambda layer, shape: encoding if layer < shape.layers // part else main


def _always(encoding: str) -> Callable[[int, Shape], str]:
    return lambda layer, shape: encoding


def _shared(encoding: str, main: str) -> Callable[[int, Shape], str]:
    """Return `encoding` where at least four query heads share a key head, and few values carry much."""
    return lambda layer, shape: encoding if shape.sharing >= 4 else main


def _up_to(count: int, encoding: str, main: str) -> Callable[[int, Shape], str]:
    return lambda layer, shape: encoding if layer < count else main


TYPES: dict[str, FileType] = {
    kind.name: kind
    for kind in (
        FileType("f32", 0, "F32", 32.0, "same"),
        FileType("f16", 1, "F16", 16.0, "same", usual=True),
        FileType("bf16", 32, "BF16", 16.0, "same"),
        FileType("q8_0", 7, "Q8_0", 8.5, "same", usual=True),
        FileType("q6_k", 18, "Q6_K", 6.6, "good", usual=True),
        FileType("q5_k_m", 17, "Q5_K", 5.7, "good", _better("Q6_K", "Q5_K"), _better("Q6_K", "Q5_K"), usual=True),
        FileType("q5_k_s", 16, "Q5_K", 5.54, "good"),
        FileType("q5_1", 9, "Q5_1", 6.0, "good"),
        FileType("q5_0", 8, "Q5_0", 5.5, "good"),
        FileType("q4_k_m", 15, "Q4_K", 4.85, "fair", _better("Q6_K", "Q4_K"), _better("Q6_K", "Q4_K"), usual=True),
        FileType("q4_k_s", 14, "Q4_K", 4.6, "fair", _up_to(4, "Q5_K", "Q4_K"), _first(8, "Q5_K", "Q4_K")),
        FileType("q4_1", 3, "Q4_1", 5.0, "fair"),
        FileType("q4_0", 2, "Q4_0", 4.55, "fair"),
        FileType("iq4_nl", 25, "IQ4_NL", 4.5, "fair", _shared("Q5_K", "IQ4_NL"), _first(8, "Q5_K", "IQ4_NL")),
        FileType("iq4_xs", 30, "IQ4_XS", 4.3, "fair", _shared("Q5_K", "IQ4_XS"), _first(8, "Q5_K", "IQ4_XS")),
        FileType("q3_k_l", 13, "Q3_K", 4.27, "rough", _always("Q5_K"), _always("Q5_K"), "Q5_K"),
        FileType(
            "q3_k_m", 12, "Q3_K", 3.9, "rough", _up_to(2, "Q5_K", "Q4_K"), _first(16, "Q5_K", "Q4_K"), "Q4_K", True
        ),
        FileType("q3_k_s", 11, "Q3_K", 3.5, "rough"),
        FileType("q2_k", 10, "Q2_K", 3.0, "rough", _shared("Q4_K", "Q3_K"), _always("Q3_K"), "Q3_K"),
    )
}


def type_named(name: str) -> FileType:
    """Return the type of that name, in any case.

    Raises:
        ExportError: there is none, with those there are.
    """
    kind = TYPES.get(name.lower())
    if kind is None:
        raise ExportError(f"there is no GGUF type {name!r}", fix=f"use one of {', '.join(TYPES)}.")
    return kind
