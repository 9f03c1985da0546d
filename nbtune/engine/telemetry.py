"""What the machine does while a run trains: memory by what holds it, and how busy the device is, once a second.

    with Gauge(emit, model, device) as emit: ...      # emit passes events on, and adds a `Device` behind some steps

Memory comes from the numbers that a step tells anyway; what the driver says is asked by a thread of its own, so that
the training thread waits for nothing. Whatever goes wrong here ends the gauge, not the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from nbtune import device as machine
from nbtune.device.nvml import Card, Reading, card_of
from nbtune.events import Device, Event, Step
from nbtune.train.pace import processes

if TYPE_CHECKING:
    import torch

    from nbtune.train.distributed import RankedControl

EVERY = 1.0  # seconds


class Gauge:
    """Passes events on, and says after a step, at most once a second, what the machine does.

    Args:
        emit: takes events.
        model: whose weights are counted, once.
        device: it trains there.
        together: what all of several processes tell of their steps.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        model: torch.nn.Module,
        device: torch.device,
        together: RankedControl | None = None,
    ) -> None:
        self._emit, self._device, self._together = emit, device, together
        self._model: torch.nn.Module | None = model
        self._held: tuple[int, int] | None = None
        self._said = float("-inf")
        self._busy = _Busy()
        self._card: Card | None = None
        self._reading, self._over = Reading(), threading.Event()

    def __enter__(self) -> Gauge:
        self._card = card_of(self._device)
        if self._card is not None:
            self._thread = threading.Thread(target=self._watch, name="nbtune-gauge", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._model = None  # whoever still knows `emit` does not hold the weights

    def _watch(self) -> None:
        while self._card is not None and not self._over.wait(EVERY):
            try:
                self._reading = self._card.read()
            except Exception:  # noqa: BLE001 — whatever a driver does: nothing more is known of the card
                self._reading = Reading()
                return

    def __call__(self, event: Event) -> None:
        self._emit(event)
        if isinstance(event, Step) and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            try:
                told = self._look(event)
            except Exception:  # noqa: BLE001 — an unusual tensor or a machine that does not tell: train on, without a gauge
                self._said = float("inf")
                return
            self._emit(told)
            if self._together is not None and (shared := processes(event.step, self._together.told)):
                self._emit(shared)

    def _look(self, step: Step) -> Device:
        if self._held is None:
            assert self._model is not None
            named = list(self._model.parameters())
            frozen = [*(p for p in named if not p.requires_grad), *self._model.buffers()]
            self._held = self._size(frozen), self._size(p for p in named if p.requires_grad)
            self._model = None
        reading = self._reading
        busy = self._busy.percent() if self._device.type == "cpu" else reading.busy
        return Device(
            step=step.step,
            parts=parts(step, *self._held, apart=self._device.type != "cpu"),
            busy=busy,
            temperature=reading.temperature,
            watts=reading.watts,
            slowed=reading.slowed,
        )

    def _size(self, tensors: Iterable[torch.Tensor]) -> int:
        """Return the bytes on the device; what shares memory counts once."""
        local = (getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for tensor in tensors)  # of shards: ours
        storages = [tensor.untyped_storage() for tensor in local if tensor.device.type == self._device.type]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def parts(step: Step, weights: int, adapter: int, *, apart: bool) -> dict[str, int]:
    """Return the bytes by what holds them, of a step's numbers.

    Args:
        step: `memory_allocated` between two steps, `memory_peak` within them, `memory_reserved` by the allocator.
        weights, adapter: bytes of what is frozen, and of what is trained.
        apart: the numbers are of an allocator that holds nothing but the run; otherwise of the whole process.
    Returns:
        ``state`` is what else stays from step to step (gradients, the optimizer's moments), ``work`` what a step needs
        on top (activations, the head), ``kept`` what the allocator holds ready. Of a process: ``rest`` is all else.

    >>> parts(Step(step=1, loss=1.0, memory_allocated=90, memory_peak=120, memory_reserved=130), 60, 10, apart=True)
    {'weights': 60, 'adapter': 10, 'state': 20, 'work': 30, 'kept': 10}
    """
    held, peak = step.memory_allocated, max(step.memory_peak, step.memory_allocated)
    if not apart:
        return {"weights": weights, "adapter": adapter, "rest": max(0, held - weights - adapter)}
    return {
        "weights": weights,
        "adapter": adapter,
        "state": max(0, held - weights - adapter),
        "work": peak - held,
        "kept": max(0, step.memory_reserved - peak),
    }


class _Busy:
    """The share of its cores that this process has used since the last look, in percent."""

    def __init__(self) -> None:
        self._cores = machine.cpu_count()
        self._at, self._used = time.monotonic(), time.process_time()

    def percent(self) -> float:
        """Return the CPU's use since the last call in percent; −1 when asked too soon to tell."""
        at, used = time.monotonic(), time.process_time()
        past, spent = at - self._at, used - self._used
        self._at, self._used = at, used
        return min(100.0, 100 * spent / (past * self._cores)) if past > 0.1 else -1.0
