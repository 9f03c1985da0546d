"""What this process holds on its device, in bytes; whether RAM can be pinned for it."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PINNED_PROBE = 64 * 2**20  # bytes


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that this process holds: on the GPU by torch's allocator, elsewhere its resident RAM (`allocated`)."""

    allocated: int
    reserved: int
    peak: int


def memory_use(device: torch.device) -> MemoryUse:
    """Return what this process holds now, and held at most since `reset_peak` (on a CPU: since it began).

    >>> use = nbtune.device.memory_use(nbtune.device.pick("cpu"))
    >>> 0 < use.allocated <= use.peak
    True
    """
    if device.type == "cuda":
        import torch

        return MemoryUse(
            torch.cuda.memory_allocated(device),
            torch.cuda.memory_reserved(device),
            torch.cuda.max_memory_allocated(device),
        )
    import psutil

    rss = psutil.Process().memory_info().rss
    return MemoryUse(rss, rss, max(rss, _peak_rss()))


def _peak_rss() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def reset_peak(device: torch.device) -> None:
    """Start a new peak for `memory_use`.

    >>> nbtune.device.reset_peak(nbtune.device.pick("cpu"))
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def empty_cache(device: torch.device) -> None:
    """Give memory that torch only keeps for later back to the device.

    >>> nbtune.device.empty_cache(nbtune.device.pick("cpu"))
    """
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@functools.cache
def pinnable() -> bool:
    """Return whether this machine pins RAM for its GPU, found out by pinning some: WSL and tight containers may refuse.

    >>> nbtune.device.pinnable() in (True, False)
    True

    Where it does not, copies are made from ordinary memory and wait for the device: slower, never wrong.
    """
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.empty(_PINNED_PROBE, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return False
    return True
