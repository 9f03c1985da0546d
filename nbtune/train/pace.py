"""What each of several processes does in a step before it waits for the others, and what it sends them.

A process's own share of a step ends where gradients are summed: who comes there last is whom all wait for, and the sum
itself takes as long as it takes that one. Parted weights are waited for in every layer, so that all seem alike there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nbtune import events
from nbtune.device import memory_use
from nbtune.device.streams import Moment
from nbtune.train.parted import is_parted

if TYPE_CHECKING:
    import torch

_AGAIN = 0.5  # seconds for which what was told holds: memory costs as much to ask for as a small step's launches
_GRADIENT = 4  # bytes


class Told(NamedTuple):
    """Of one process: seconds and tokens of its share of a step, seconds of the sum, bytes sent, most bytes held."""

    seconds: float
    tokens: int
    exchange: float
    sent: int
    memory: int


@dataclass
class _Share:
    began: Moment
    ready: Moment | None = None
    summed: Moment | None = None
    tokens: int = 0
    passes: int = 0
    gradients: int = 0  # numbers


class Pace:
    """Takes the times of a process's steps; what is told is that of a step which the device has done.

    Args:
        device: where it trains.
        count: how many processes there are.
        weights: of its model, of which some may be parted.
    """

    def __init__(self, device: torch.device, count: int, weights: Iterable[torch.nn.Parameter] = ()) -> None:
        self._device, self._part = device, (count - 1) / count
        lent = [(p.numel(), p.element_size(), p.requires_grad) for p in weights if is_parted(p)]
        # put together for the forward and for the backward; gradients come back in fp32
        self._lent = sum(numbers * (2 * size + trained * _GRADIENT) for numbers, size, trained in lent)
        self._now: _Share | None = None
        self._done: _Share | None = None
        self._last: Told | None = None
        self._at = float("-inf")

    def begin(self) -> None:
        """Begin a step's share."""
        if self._now is not None and self._now.summed is not None:
            self._done = self._now
        self._now = _Share(Moment(self._device))

    def take(self, tokens: int) -> None:
        """Count a micro-batch."""
        if self._now is not None:
            self._now.tokens += tokens
            self._now.passes += 1

    def ready(self) -> None:
        """End the share: from here on the others are waited for."""
        if self._now is not None:
            self._now.ready = Moment(self._device)

    def summed(self, gradients: Iterable[torch.Tensor]) -> None:
        """End the step: the gradients of all are here."""
        if self._now is not None:
            self._now.gradients = sum(gradient.numel() for gradient in gradients)
            self._now.summed = Moment(self._device)

    def told(self) -> Told | None:
        """Return how the step before the last one went; None: not known yet."""
        done, now = self._done, time.monotonic()
        if done is None or done.ready is None or done.summed is None or now - self._at < _AGAIN:
            return self._last
        self._at = now
        sent = self._part * (2 * _GRADIENT * done.gradients + done.passes * self._lent)
        seconds, exchange = done.ready.since(done.began), done.summed.since(done.ready)
        self._last = Told(seconds, done.tokens, exchange, int(sent), memory_use(self._device).peak)
        return self._last


def processes(step: int, told: Sequence[Told | None]) -> events.Processes | None:
    """Return what all processes have told, in their order, as an event; None: somebody has not begun."""
    known = [one for one in told if one is not None]
    if not known or len(known) < len(told):
        return None
    return events.Processes(
        step=step,
        seconds=tuple(round(one.seconds, 6) for one in known),
        tokens=tuple(one.tokens for one in known),
        memory=tuple(one.memory for one in known),
        exchange=round(min(one.exchange for one in known), 6),
        sent=max(one.sent for one in known),
    )
