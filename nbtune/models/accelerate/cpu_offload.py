"""Frozen weights that live in the host's memory, and travel to the device just before they are multiplied with.

Each kind of matrix (of q, k, v; of attention's output; of gate and up; of down) has two or three places on the device.
While one is multiplied with, the matrices that follow it come in: which ones these are was seen in the step before. A
layer's weights come once for the forward and once for the backward.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nbtune.device import pinnable
from nbtune.device.streams import synchronize
from nbtune.models.accelerate.lora_linear import LinearGroup, wide
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.shared_buffers import EdgedGroup

_AHEAD = 8  # loads: a layer's backward, which asks for most of its matrices twice, and some of the next one
_MARKS = 16  # loads whose end is remembered


class Traveller(Protocol):
    """What travels: the frozen weights of a group."""

    host: Tensor

    @property
    def kind(self) -> Any:
        """Groups of one kind share their places."""

    @property
    def places(self) -> int | None:
        """How many places its kind has; None: as many as all others."""

    def empty(self) -> Tensor:
        """Return memory for one place."""

    def landing(self, place: Tensor) -> Tensor:
        """Return where in a place `host` goes."""


@dataclass
class Place:
    """Memory on the device for one matrix of a kind."""

    matrix: Tensor
    holds: "Traveller | None" = None
    used: float = -10  # the number of the load that used it last
    wanted: int = -10  # the number of the load that is foreseen to use it
    arrived: torch.Event | None = None
    left: torch.Event | None = None  # what was in it has been read, and is not read again


class Traffic:
    """The transfers of one model.

    Args:
        device: where the products are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.Stream(device) if device.type == "cuda" else None
        self.sent = 0  # matrices that have travelled
        self.each = 2  # places of each kind
        self._places: dict[Any, list[Place]] = {}
        self._loads = self._first = 0
        self._seen: list[Traveller] = []
        self._order: list[Traveller] = []
        self._marks: deque[tuple[int, torch.Event]] = deque(maxlen=_MARKS)  # what was launched before a load

    def reset(self) -> None:
        """Forget what was on its way: the step that wanted it was broken off. Places stay: groups have views of them,
        so that others beside them would be twice the memory."""
        synchronize(self.device)
        for place in itertools.chain.from_iterable(self._places.values()):
            place.holds = place.arrived = place.left = None
            place.used = place.wanted = -10
        self._marks.clear()
        self._seen, self._order = [], []

    def begin(self) -> None:
        """Begin a forward: what was loaded since the last one is what will be loaded now."""
        if len(self._seen) > len(self._order) or self._seen != self._order[: len(self._seen)]:
            self._order = self._seen
        self._seen, self._first = [], self._loads

    def bring(self, group: "Traveller") -> Place:
        """Return the place that holds the group's matrix; work launched from now on finds it there.

        What was launched with the matrices before the last one must not be followed by more work with them.
        """
        now = self._loads
        self._loads += 1
        self._seen.append(group)
        if self.stream is not None:
            self._marks.append((now, torch.accelerator.current_stream(self.device).record_event()))
        place = self._find(group)
        if place is None:  # something that was foreseen, and has not come, may have to go
            place = self._send(group, min(self._idle(group, now), key=lambda p: p.wanted))
        place.used = max(place.used, now)
        if place.arrived is not None:
            torch.accelerator.current_stream(self.device).wait_event(place.arrived)
            place.arrived = None
        self._bring_next(now)
        return place

    def leave(self, place: Place) -> None:
        """Say that all work with a place, brought just now, has been launched: what comes next may come into it."""
        place.used = -10
        if self.stream is not None:
            place.left = torch.accelerator.current_stream(self.device).record_event()

    def _bring_next(self, now: int) -> None:
        at = now - self._first
        if at >= len(self._order) or self._order[at] is not self._seen[-1]:
            return
        for i in range(1, _AHEAD + 1):
            group = self._order[(at + i) % len(self._order)]
            place = self._find(group)
            if place is None:
                free = [p for p in self._idle(group, now) if p.wanted <= now]
                if not free:
                    return
                place = self._send(group, min(free, key=lambda p: p.used))
            place.wanted = now + i

    def _find(self, group: "Traveller") -> Place | None:
        return next((place for place in self._places.get(group.kind, ()) if place.holds is group), None)

    def _idle(self, group: "Traveller", now: int) -> list[Place]:
        """Return places of the group's kind with which nothing that is still to be launched works."""
        places = self._places.get(group.kind)
        if places is None:
            places = self._places[group.kind] = [Place(group.empty()) for _ in range(group.places or self.each)]
        return [p for p in places if p.used <= now - 2]  # what the last load brought may still be worked with

    def _free_since(self, place: Place) -> torch.Event | None:
        """Return what has come when nothing works with a place any more: not all that was launched since, which would
        hold the link up. None: that is not known."""
        if place.left is not None:
            return place.left
        if place.used < 0:
            return None
        return next((event for load, event in self._marks if load >= place.used + 2), None)

    def _send(self, group: "Traveller", place: Place) -> Place:
        self.sent += 1
        place.holds = group
        rows = group.landing(place.matrix)
        if self.stream is None:
            rows.copy_(group.host)
            return place
        stream = torch.accelerator.current_stream(self.device)
        self.stream.wait_event(self._free_since(place) or stream.record_event())
        torch.accelerator.set_stream(self.stream)
        try:
            rows.copy_(group.host, non_blocking=True)
        finally:
            torch.accelerator.set_stream(stream)
        place.arrived, place.left = self.stream.record_event(), None
        return place


def traffic_for(device: torch.device, shared: dict[Any, Tensor]) -> Traffic:
    """Return the transfers that all groups of one model share."""
    return shared.setdefault("traffic", Traffic(device))  # type: ignore[call-overload, arg-type, return-value]


class StreamedGroup(EdgedGroup):
    """Like `LinearGroup`, with its frozen weights in pinned host memory.

    Args:
        modules: the layers, in the order of their outputs.

    Raises:
        LeftAlone: see `LinearGroup`; also where the weights are trained.
    """

    host: Tensor  # [O, pitch of M]: the rows of W, as they lie in M
    place: Place | None = None
    places: int | None = None
    away = True

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__(modules)
        if self.full:
            raise LeftAlone("weights that are trained do not travel")

    @property
    def kind(self) -> Any:
        """Groups of one kind share their places: those with one shape, and with one part in the layer."""
        return self.outputs, self.inputs, self.rank, len(self.members)

    def empty(self) -> Tensor:
        """Return memory for M on the device, whole rows."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        m = wide(self.outputs + self.rank, self.inputs + self.rank, like)
        return m.as_strided((m.shape[0], m.stride(0)), m.stride()).zero_()

    def landing(self, place: Tensor) -> Tensor:
        """Return the rows of W in a place for M."""
        return place[: self.outputs]

    def attach(self, shared: dict[Any, Tensor]) -> None:
        self.traffic: Traffic = traffic_for(self.device, shared)
        pinned = self.device.type == "cuda" and pinnable()
        pitch = self.empty().shape[1]
        self.host = torch.zeros((self.outputs, pitch), dtype=self.dtype, pin_memory=pinned)
        with torch.no_grad():
            for m, rows in zip(self.members, self._waiting.split(self.outs), strict=True):
                rows.copy_(m.base.weight)
            if self.has_bias:
                self.bias = torch.cat([m.base.bias.detach() for m in self.members])
        self.put(self._waiting)
        self.make_edges()
        self.matrix = torch.empty(0)  # there is one whenever it is loaded

    def detach(self) -> None:
        for m in self.members:
            m.base.weight.data = m.base.weight.data.to(self.device, copy=True).contiguous()
        self.matrix = self.bias = None

    @torch.no_grad()
    def load(self) -> None:
        self.place = self.traffic.bring(self)
        self.matrix = self.place.matrix[:, : self.inputs + self.rank]
        self.write_edges()

    def lend(self) -> None:
        """Give the stock layers their weights on the device, for one forward."""
        self.load()
        assert self.place is not None
        self.place.used = float("inf")
        self.put(self.matrix[: self.outputs, : self.inputs])

    def take_back(self) -> None:
        """Take back what `lend` lent."""
        assert self.place is not None
        self.place.used = -10
        self.put(self._waiting)

    @property
    def _waiting(self) -> Tensor:
        """The weights in the host's memory, `[O, K]`."""
        return self.host[:, : self.inputs]


@contextmanager
def present(groups: list[LinearGroup]) -> Iterator[None]:
    """Let the stock layers of all groups, while it lasts, find weights that they can work with."""
    for group in groups:
        group.lend()
    try:
        yield
    finally:
        for group in groups:
            group.take_back()


def traffic_of(groups: list[LinearGroup]) -> Traffic | None:
    """Return the transfers that the groups share, if any of them travels."""
    return next((group.traffic for group in groups if hasattr(group, "traffic")), None)
