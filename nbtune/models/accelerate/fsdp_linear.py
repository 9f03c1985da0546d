"""A group of linear layers whose weights are not at hand outside of their layer's own forward and backward (FSDP2).

`fully_shard` keeps a slice of each weight on each process, and puts whole weights into the modules while a layer runs.
So nothing can be a view of one matrix: it is filled anew before each product, in scratch that all layers of one shape
share. At 8B shapes that is a copy of 436 MB a layer and pass beside 14 ms of work.
"""

from typing import Any

import torch
from torch import Tensor

from nbtune.models.accelerate.lora_linear import LinearGroup
from nbtune.models.accelerate.shared_buffers import shared_matrix


class FsdpGroup(LinearGroup):
    """Like `LinearGroup`, but the layers keep weights of their own, which are read whenever they are used."""

    def attach(self, shared: dict[Any, Tensor]) -> None:
        self.matrix = shared_matrix(self, shared)
        self.sync_pairs = []

    def detach(self) -> None:
        self.matrix = self.bias = None

    def intact(self) -> bool:
        off = any(m.a is not None and (m.module.merged or m.module.disable_adapters) for m in self.members)  # type: ignore[truthy-function]
        return self.matrix is not None and not off

    @torch.no_grad()
    def load(self) -> None:
        """Write whole weights, and LoRA beside and below them, into the shared matrix."""
        start = 0
        for m, width in zip(self.members, self.outs, strict=True):
            self.matrix[start : start + width, : self.inputs].copy_(m.base.weight)
            start += width
        if self.has_bias:
            self.bias = torch.cat([m.base.bias for m in self.members])
        if not self.rank:
            return
        self.matrix[: self.outputs, self.inputs :].zero_()
        below, beside = self.matrix[self.outputs :, : self.inputs], self.matrix[: self.outputs, self.inputs :]
        for place, parameter, factor in self._pairs_in(below, beside):
            place.copy_(parameter * factor)
