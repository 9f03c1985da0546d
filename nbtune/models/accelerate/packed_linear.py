"""A group whose 16-bit frozen weights wait in the host's memory in 12 bits each, which lose nothing.

A quarter less travels, and a quarter less waits in the host's memory. What has come is unpacked into a matrix that all
groups of one shape share, as 4-bit weights are decoded; every bit is that of the weights that were loaded.
"""

from typing import Any

import torch
from nbtune_kernels import packed
from torch import Tensor, nn

from nbtune.device import pinnable
from nbtune.models.accelerate.cpu_offload import StreamedGroup, Traffic, traffic_for
from nbtune.models.accelerate.shared_buffers import Scratch, shared_scratch


class PackedGroup(StreamedGroup):
    """Like `StreamedGroup`, with its weights packed.

    Args:
        modules: the layers, in the order of their outputs.
        window: what `packed.base_of` says of their weights.

    Raises:
        LeftAlone: see `StreamedGroup`.
    """

    host: Tensor  # uint8: `packed.Packed.data`
    scratch: Scratch
    places = 2  # what has come is unpacked at once, and leaves its place

    def __init__(self, modules: list[nn.Module], window: tuple[int, int]) -> None:
        super().__init__(modules)
        self._base, self._exceptions = window

    @property
    def kind(self) -> Any:
        """Groups of one kind share their places on the device."""
        return "packed", self.outputs, self.inputs

    def empty(self) -> Tensor:
        """Return memory on the device for any packed weights of this shape."""
        return torch.empty(packed.most_bytes(self.outputs, self.inputs), dtype=torch.uint8, device=self.device)

    def landing(self, place: Tensor) -> Tensor:
        """Return where in a place the packed weights come to lie."""
        return place[: self.host.numel()]

    def attach(self, shared: dict[Any, Tensor]) -> None:
        self.traffic: Traffic = traffic_for(self.device, shared)
        self.matrix, self.scratch = shared_scratch(self, shared)
        size = self.outputs * self.inputs * 3 // 2 + 6 * self._exceptions
        pinned = self.device.type == "cuda" and pinnable()
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        packed.pack([m.base.weight for m in self.members], self._base, self._exceptions, self.host)
        if self.has_bias:
            self.bias = torch.cat([m.base.bias.detach() for m in self.members])
        self.put(self._waiting)
        self.make_edges()

    def detach(self) -> None:
        whole = torch.empty((self.outputs, self.inputs), dtype=self.dtype, device=self.device)
        packed.unpack(packed.Packed(self.host.to(self.device), self._base, self._exceptions), whole)
        for m, rows in zip(self.members, whole.split(self.outs), strict=True):
            m.base.weight.data = rows.clone()
        self.matrix = self.bias = None

    @torch.no_grad()
    def load(self) -> None:
        if self.scratch.holds is not self:
            self._bring(self.matrix[: self.outputs, : self.inputs])
            self.write_edges()
            self.scratch.holds = self

    @torch.no_grad()
    def lend(self) -> None:
        if self.scratch.lent is None:
            lent = self.matrix[: self.outputs, : self.inputs]
            self.scratch.lent, self.scratch.holds = self, None  # LoRA at its edges may be another's
        else:  # all matrices of a layer are lent at once, and two of them may have one shape
            lent = torch.empty((self.outputs, self.inputs), dtype=self.dtype, device=self.device)
        self._bring(lent)
        self.put(lent)

    def take_back(self) -> None:
        if self.scratch.lent is self:
            self.scratch.lent = None
        self.put(self._waiting)

    def _bring(self, out: Tensor) -> None:
        place = self.traffic.bring(self)
        packed.unpack(packed.Packed(self.landing(place.matrix), self._base, self._exceptions), out)
        self.traffic.leave(place)

    @property
    def _waiting(self) -> Tensor:
        """What the layers' own weights are meanwhile: bytes, which nobody can mistake for the weights, `[O, K 3/2]`."""
        return self.host[: self.outputs * self.inputs * 3 // 2].view(self.outputs, -1)


def streamed_group(modules: list[nn.Module]) -> StreamedGroup:
    """Return the group for layers whose weights travel: packed, where that saves what it promises.

    Raises:
        LeftAlone: see `StreamedGroup`.
    """
    group = StreamedGroup(modules)
    window = packed.base_of([m.base.weight for m in group.members])
    return group if window is None else PackedGroup(modules, window)
