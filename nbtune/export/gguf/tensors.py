"""The tensors of a GGUF file: from which weights each is made, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from nbtune.errors import ExportError
from nbtune.export.merge import MergedModel

Rows = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    Args:
        name: in the file, such as ``"blk.0.attn_q.weight"``.
        shape: rows first, as torch has it (the file's header states it the other way round).
        chunks: makes its rows in order, fp32, some at a time.
        full: kept in fp32 whatever type the file has (norms, biases, routers, rotary factors).
        source: the weight that it is made of, where it is one.
    """

    name: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[torch.Tensor]]
    full: bool = False
    source: str = ""

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def plain(model: MergedModel, source: str, name: str, *, full: bool = False) -> GgufTensor:
    """Return a weight as it is; vectors and routers are kept in fp32."""
    shape = model.shape(source)
    return GgufTensor(name, shape, lambda: model.chunks(source), full or len(shape) < 2, source)


def mapped(model: MergedModel, source: str, name: str, change: Rows, *, shape: tuple[int, ...] = ()) -> GgufTensor:
    """Return a weight whose every element or whole is changed by `change` (read as a whole)."""

    def chunks() -> Iterator[torch.Tensor]:
        yield change(model.get(source))

    shape = shape or model.shape(source)
    return GgufTensor(name, shape, chunks, len(shape) < 2, source)


def parted(model: MergedModel, source: str, parts: dict[str, Rows]) -> list[GgufTensor]:
    """Return the tensors that one weight becomes: of each its name, and what makes it of the weight."""
    empty = torch.empty(model.shape(source), device="meta")
    return [mapped(model, source, name, take, shape=tuple(take(empty).shape)) for name, take in parts.items()]


def permuted(model: MergedModel, source: str, name: str, heads: int, rotary: int) -> GgufTensor:
    """Return a query or key weight (or bias) of the llama architecture, its rows reordered.

    transformers rotates the first half of a head against its second half, llama.cpp's llama architecture rotates
    neighbours: row ``(head, half, i)`` moves to ``(head, i, half)``; rows beyond the `rotary` of a head stay.
    """

    def change(weight: torch.Tensor) -> torch.Tensor:
        each = weight.reshape(heads, -1, *weight.shape[1:])
        turned = each[:, :rotary].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return torch.cat([turned, each[:, rotary:]], dim=1).reshape(weight.shape)

    return mapped(model, source, name, change)


def stacked(model: MergedModel, sources: list[str], name: str) -> GgufTensor:
    """Stack experts' weights of one kind: (experts, rows, columns).

    Raises:
        ExportError: one has another shape than the rest.
    """
    usual = Counter(model.shape(source) for source in sources).most_common(1)[0][0]
    if odd := next((source for source in sources if model.shape(source) != usual), None):
        raise ExportError(
            f"the weight {odd!r} has the shape {list(model.shape(odd))}, those of other experts {list(usual)}",
            place=str(model.source.base),
            fix="see that the folder is whole.",
        )

    def chunks() -> Iterator[torch.Tensor]:
        for source in sources:
            yield from model.chunks(source)

    return GgufTensor(name, (len(sources), *model.shape(sources[0])), chunks)


def of_rows(model: MergedModel, source: str, name: str, rows: int) -> GgufTensor:
    """Return a weight's first `rows`; where it has fewer, those that lack are its first one's."""
    shape = model.shape(source)

    def chunks() -> Iterator[torch.Tensor]:
        left = rows
        for part in model.chunks(source):
            if left > 0:
                yield part[:left]
            left -= len(part)
        if left > 0:
            yield model.rows(source, 0, 1).repeat(left, 1)

    return GgufTensor(name, (rows, shape[1]), chunks, source=source)


def unused(name: str, shape: tuple[int, ...]) -> GgufTensor:
    """Return zeros: what llama.cpp asks for, and does not look at."""
    return GgufTensor(name, shape, lambda: iter((torch.zeros(shape),)), len(shape) < 2)


def constant(name: str, values: torch.Tensor) -> GgufTensor:
    """Return a small tensor computed from the config, fp32."""
    return GgufTensor(name, tuple(values.shape), lambda: iter((values.float(),)), True)
