"""Work that a device was given: waiting for it, recording it, sending tensors beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from nbtune.device.memory import pinnable

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def fork_rng(device: torch.device, *, needed: bool = True) -> AbstractContextManager[Any]:
    """Return a context in which torch's random state may be changed; the user's own comes back afterwards."""
    if not needed:
        return nullcontext()
    import torch

    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device, without waiting for what the device was given before.

    A copy from pageable memory would wait for all of that, so it goes through pinned memory.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned() and pinnable():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def replayable(device: torch.device) -> bool:
    """Return whether work on this device can be recorded once and replayed (CUDA graphs)."""
    return device.type == "cuda"


def capturing(device: torch.device) -> bool:
    """Return whether work on this device is being recorded now, so nothing may wait for it."""
    import torch

    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def record(work: Callable[[], T], device: torch.device, *, beside: Any = None) -> tuple[Any, T]:
    """Record work as a CUDA graph, without running it; other threads may use the device meanwhile.

    Args:
        work: launches kernels, and neither waits for the device nor copies from pageable memory.
        beside: an earlier graph whose memory this one may share (the two never run at once).

    Returns:
        The graph, whose `replay()` runs the work, and what work returned: tensors that each replay fills anew.
    """
    import torch

    graph = torch.cuda.CUDAGraph()
    pool = None if beside is None else beside.pool()
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()
    return graph, result


class Moment:
    """When a device has done what it was given until now: a host that runs ahead is told later, and waits for nothing.

    Args:
        device: where the device has no clock of its own (anything but CUDA) the host's stands for it.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        else:
            self._at = time.perf_counter()

    def since(self, earlier: Moment) -> float:
        """Return the seconds from an earlier moment to this one; waits until this one has come."""
        if self._event is None:
            return self._at - earlier._at
        self._event.synchronize()
        return float(earlier._event.elapsed_time(self._event)) / 1000


class Later(Moment):
    """Numbers that are still being computed: copied out behind the work that makes them, read when they are there.

    `tensor.item()` would wait for all work that was queued since, and so for the next step too. The moment is that in
    which they are there.

    Args:
        tensors: scalars on the device.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        import torch

        self._values = torch.stack([tensor.detach().float().reshape(()) for tensor in tensors])
        if self._values.device.type == "cuda":
            both, self._values = self._values, torch.empty(self._values.shape, pin_memory=pinnable())
            self._values.copy_(both, non_blocking=True)
            super().__init__(both.device)
        else:
            super().__init__(self._values.device)

    def read(self) -> list[float]:
        """Return the numbers; waits for the work that makes them, and for nothing after it."""
        if self._event is not None:
            self._event.synchronize()
        numbers = [float(value) for value in self._values.tolist()]
        if self._event is None:
            self._at = time.perf_counter()
        return numbers
