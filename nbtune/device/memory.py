"""What this process holds on its device, in bytes; whether RAM can be pinned for it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbtune.device.site_file import Limit

if TYPE_CHECKING:
    import torch

    from nbtune.device.facts import DeviceFacts

_PINNED_PROBE = 64 * 2**20  # bytes
_FEW = 4 * 2**30  # bytes of RAM: a limit below is worth a tenth of the time
_MMAP_THRESHOLD = -3  # of glibc's mallopt: from so many bytes on memory has pages of its own
# what a process takes of a card beside torch's allocator: CUDA's context and its libraries' (0.84 and 0.85 GiB were
# measured on an H200, docs/bench/2026-11-24-h200-nbtune.jsonl)
_BESIDE = int(0.85 * 2**30)


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
    """Return the most RAM that this process has held; 0 where nobody tells.

    Linux's `ru_maxrss` begins with what the parent held when it started us: a notebook's kernel with its models.
    """
    with (
        contextlib.suppress(OSError, StopIteration),
        open("/proc/self/status", encoding="ascii", errors="replace") as file,
    ):
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
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
    """Give memory that torch only keeps for later back to the device; of the host, what its C library keeps (glibc).

    >>> nbtune.device.empty_cache(nbtune.device.pick("cpu"))
    """
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        _trim()


def _trim() -> None:
    """Give freed memory between what is held back to the system: glibc keeps it, 120 MiB after SmolLM2-135M was read in
    4 bits, of whose small tensors each holds the large one's place before it."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of the C library, or None where it is another one."""
    return getattr(ctypes.CDLL(None), name, None) if platform.libc_ver()[0] == "glibc" else None


def allocator_limit(device: torch.device) -> Limit | None:
    """Return what torch's allocator is held to on a GPU, and what the process takes beside it; None: to nothing."""
    import torch

    asked = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # from torch 2.8 on
    fraction = 1.0 if asked is None else float(asked(device))
    if fraction >= 1:
        return None
    return Limit(int(fraction * torch.cuda.mem_get_info(device)[1]) + _BESIDE, "torch's memory fraction")


@contextlib.contextmanager
def within_limits(device: torch.device, facts: DeviceFacts, processes: int = 1) -> Iterator[None]:
    """Hold this process to what limits it, of a GPU's memory and of the cores: see `kept_within`, `threads_within`.

    >>> place = nbtune.device.pick("cpu")
    >>> with nbtune.device.within_limits(place, nbtune.device.describe(place)):
    ...     pass

    Args:
        facts: of `describe`.
        processes: that share the cores.
    """
    threads = max(1, facts.cores // processes) if facts.cores else 0
    with kept_within(device, facts.cap), threads_within(threads):
        yield


@contextlib.contextmanager
def kept_within(device: torch.device, cap: int) -> Iterator[None]:
    """Hold this process to so many bytes of a GPU while it loads and works: torch's allocator has what is left beside a
    CUDA context, and refuses more. Of a host, where they are few, nothing that is large is kept once it is freed. 0:
    nothing is done."""
    if device.type != "cuda" or not cap:
        with _large_ones_mapped() if 0 < cap <= _FEW else contextlib.nullcontext():
            yield
        return
    import torch

    total = torch.cuda.mem_get_info(device)[1]
    asked = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    before = 1.0 if asked is None else float(asked(device))
    own = max(cap - _BESIDE, cap // 4)
    torch.cuda.set_per_process_memory_fraction(min(before, own / total), device)
    _grow_segments(True)
    try:
        yield
    finally:
        _grow_segments(False)
        torch.cuda.set_per_process_memory_fraction(before, device)


@contextlib.contextmanager
def _large_ones_mapped() -> Iterator[None]:
    """Let glibc give each large tensor pages of its own, which are gone when it is: between others it would be kept. A
    training of SmolLM2-135M in 4 bits held a quarter of a gigabyte so."""
    set_option = _of_glibc("mallopt")
    if set_option is None:
        yield
        return
    set_option(_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, 2**25)  # what it comes to by itself


def _grow_segments(whether: bool) -> None:
    """Let torch's allocator lengthen what it has (or not), where the user has not said how it is to work: blocks of a
    fixed length leave gaps, which were up to 0.6 GiB of 5."""
    import torch

    said = any(os.environ.get(name) for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    setting = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # torch has no public door to it
    setting = setting or getattr(torch.cuda.memory, "_set_allocator_settings", None)  # before torch 2.9
    if not said and setting is not None and platform.system() == "Linux":
        setting(f"expandable_segments:{whether}")


@contextlib.contextmanager
def threads_within(count: int) -> Iterator[None]:
    """Let torch work by at most so many threads (0: as many as it has); it takes as many as it sees cores, also where
    a container has a share of one."""
    import torch

    before = torch.get_num_threads()
    if not 0 < count < before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no memory, of whichever device and library.

    >>> nbtune.device.is_out_of_memory(MemoryError())
    True
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "STATUS_ALLOC_FAILED",
)


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
