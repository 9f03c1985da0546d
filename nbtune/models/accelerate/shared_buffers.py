"""What groups have in common whose matrix M is filled anew before each product: scratch, and LoRA kept beside it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbtune.models.accelerate.lora_linear import LinearGroup, wide


@dataclass
class Scratch:
    """What a matrix that groups share holds: whose weights, written since the last forward began; None: nobody's.

    `lent`: to whose stock layers.
    """

    holds: LinearGroup | None = None
    lent: LinearGroup | None = None


def shared_matrix(group: LinearGroup, shared: dict[Any, Tensor]) -> Tensor:
    """Return M for the group, zeros at first, which all groups of one shape share."""
    key = (group.outputs, group.inputs, group.rank, group.dtype, group.device)
    if key not in shared:
        like = torch.empty(0, dtype=group.dtype, device=group.device)
        shared[key] = wide(group.outputs + group.rank, group.inputs + group.rank, like).zero_()
    return shared[key]


def shared_scratch(group: LinearGroup, shared: dict[Any, Any]) -> tuple[Tensor, Scratch]:
    """Return `shared_matrix`, and what says whose weights it holds: nobody's, since a group more shares it."""
    matrix = shared_matrix(group, shared)
    scratch: Scratch = shared.setdefault(("scratch", matrix.data_ptr()), Scratch())
    scratch.holds = None
    return matrix, scratch


class EdgedGroup(LinearGroup):
    """A group that keeps its LoRA by itself, A (`below`) and sB (`beside`), where `LoraSync` writes them."""

    below: Tensor  # [R, K]
    beside: Tensor  # [O, R]

    def make_edges(self) -> None:
        """Make memory for A and sB, and their place in `sync_pairs`; the weights are where they stay."""
        like = {"dtype": self.dtype, "device": self.device}
        self.below = torch.zeros((self.rank, self.inputs), **like)
        self.beside = torch.zeros((self.outputs, self.rank), **like)
        self._address = self.members[0].base.weight.data_ptr()
        self.sync_pairs = self._pairs_in(self.below, self.beside)

    def write_edges(self) -> None:
        """Copy A and sB into M."""
        if self.rank:
            self.matrix[: self.outputs, self.inputs :].copy_(self.beside)
            self.matrix[self.outputs :, : self.inputs].copy_(self.below)

    def put(self, weights: Tensor) -> None:
        """Give each layer its rows of `weights` `[O, K]`, as a view."""
        for m, rows in zip(self.members, weights.split(self.outs), strict=True):
            m.base.weight.data = rows


def scratches_of(groups: list[LinearGroup]) -> list[Scratch]:
    """Return what the groups' shared matrices hold, each once."""
    found = (getattr(group, "scratch", None) for group in groups)
    return list({id(scratch): scratch for scratch in found if scratch is not None}.values())
