"""Gradients through the norms of one layer; of one that is used twice, they are added."""

from typing import NamedTuple

import torch
from torch import Tensor

from nbtune.models.accelerate.grad_sinks import GradJobs
from nbtune.models.accelerate.lora_linear import LinearGroup
from nbtune.models.accelerate.norms import Norm, Stats


class Source(NamedTuple):
    """The input of linear layers: `rows * x * columns`, not written out, or x itself."""

    x: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None


def seen(norm: Norm | None) -> bool:
    """Return whether what the norm gives is a product of x, of numbers of rows and of numbers of columns."""
    return norm is not None and not norm.centred and norm.weight is not None


class NormGrads:
    """The gradients of a layer's norms, gathered in one backward."""

    def __init__(self) -> None:
        self.jobs = GradJobs()  # of the linear layers between them
        self._made: dict[int, list[Tensor]] = {}

    def of(self, norm: Norm) -> list[Tensor | None]:
        """Return gradients of its `parameters()`."""
        return self._made.get(id(norm)) or [None] * len(norm.parameters())  # type: ignore[return-value]

    def join(self, others: "NormGrads") -> None:
        """Add the gradients of other rows."""
        for norm, grads in others._made.items():
            before = self._made.get(norm)
            self._made[norm] = grads if before is None else [a + b for a, b in zip(before, grads, strict=True)]

    def source(self, norm: Norm | None, x: Tensor, stats: Stats | None, group: LinearGroup) -> Source:
        """Return what the group's linear layers have read, x `[T, K]` behind the norm."""
        if norm is None or not group.parameters():
            return Source(x)
        assert stats is not None
        return Source(x, stats.rstd, norm.factor()) if seen(norm) else Source(norm.again(x, stats))

    def backward(
        self,
        norm: Norm | None,
        dy: Tensor,
        x: Tensor,
        stats: Stats | None,
        dresidual: Tensor | None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return dx of dy behind the norm, or behind none, with `dresidual` added."""
        if norm is None:
            assert dresidual is not None
            return torch.add(dy, dresidual, out=out)
        assert stats is not None
        dx, grads = norm.backward(dy, x, stats, dresidual=dresidual, out=out)
        before = self._made.get(id(norm))
        self._made[id(norm)] = grads if before is None else [a + b for a, b in zip(before, grads, strict=True)]
        return dx
