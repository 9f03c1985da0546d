"""A group of linear layers whose weights are not at hand outside of their layer's own forward and backward (FSDP2).

`fully_shard` keeps a slice of each weight on each process, and puts whole weights into the modules while a layer runs.
So nothing can be a view of one matrix: it is filled anew before each product, in scratch that all layers of one shape
share. At 8B shapes that is a copy of 436 MB a layer and pass beside 14 ms of work.
"""

from typing import Any

import torch
from torch import Tensor

from nbtune.models.accelerate.shared_buffers import EdgedGroup, shared_matrix

_WIDE = torch.complex128  # copied as 16 bytes at a time: a copy of 2 bytes at a time has half the rate


class FsdpGroup(EdgedGroup):
    """Like `LinearGroup`, but the layers keep weights of their own, which are read whenever they are used."""

    def attach(self, shared: dict[Any, Tensor]) -> None:
        self.matrix = shared_matrix(self, shared)
        self.make_edges()

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
            copy_rows(self.matrix[start : start + width, : self.inputs], m.base.weight)
            start += width
        if self.has_bias:
            self.bias = torch.cat([m.base.bias for m in self.members])
        self.write_edges()


def copy_rows(place: Tensor, rows: Tensor) -> None:
    """Copy a matrix to where another one's rows have gaps between them."""
    each = _WIDE.itemsize // place.element_size()
    counts = (place.shape[1], place.stride(0), rows.stride(0), place.storage_offset(), rows.storage_offset())
    fits = place.dtype == rows.dtype and place.stride(1) == rows.stride(1) == 1 and not any(n % each for n in counts)
    if fits:
        place, rows = place.view(_WIDE), rows.view(_WIDE)
    place.copy_(rows)
