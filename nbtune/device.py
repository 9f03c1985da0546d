"""The machine that is there: the one module that names CUDA, ROCm, MPS and cgroups.

Everything that it reports is in bytes. torch is imported when a device is asked for, not before.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nbtune.errors import PlanError

if TYPE_CHECKING:
    import torch

__all__ = [
    "DeviceFacts",
    "Later",
    "MemoryUse",
    "capturing",
    "choose_cards",
    "choose_dtype",
    "claim",
    "collectives",
    "cpu_count",
    "describe",
    "empty_cache",
    "fork_rng",
    "gpu_present",
    "memory_use",
    "only_cards",
    "pick",
    "pinnable",
    "ram_available",
    "ram_total",
    "record",
    "replayable",
    "reset_peak",
    "rocm",
    "send",
    "synchronize",
    "torch_dtype",
]

_CGROUP = Path("/sys/fs/cgroup")
_PINNED_PROBE = 64 * 2**20  # bytes
T = TypeVar("T")


@dataclass(frozen=True)
class DeviceFacts:
    """What the planner needs to know of a device; `capability` is CUDA's (major, minor), (0, 0) elsewhere.

    `ram` is what the host has free, for weights and activations that wait there; `count`: of such devices.
    """

    kind: str
    name: str
    total: int
    free: int
    capability: tuple[int, int] = (0, 0)
    bf16: bool = False
    unified: bool = False
    ram: int = 0
    count: int = 1


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that this process holds: on the GPU by torch's allocator, elsewhere its resident RAM (`allocated`)."""

    allocated: int
    reserved: int
    peak: int


def pick(wanted: str = "auto", index: int | None = None) -> torch.device:
    """The device to train on.

    Args:
        wanted: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        index: which of several GPUs; unset: the one that is current.
    Raises:
        PlanError: it was asked for by name and is not there.
    """
    import torch

    have_cuda = torch.cuda.is_available()
    have_mps = torch.backends.mps.is_available()
    if wanted == "cuda" and not have_cuda:
        raise PlanError(
            "there is no CUDA or ROCm GPU that torch can use", fix="write `device: auto`, or run `nbtune doctor`"
        )
    if wanted == "mps" and not have_mps:
        raise PlanError("there is no Apple GPU that torch can use", fix="write `device: auto`")
    if wanted == "cuda" or (wanted == "auto" and have_cuda):
        return torch.device("cuda", torch.cuda.current_device() if index is None else index)
    if wanted == "mps" or (wanted == "auto" and have_mps):
        return torch.device("mps")
    return torch.device("cpu")


def describe(device: torch.device) -> DeviceFacts:
    """Name, memory and abilities of a device; `NBTUNE_VRAM_GIB` lowers what a GPU seems to have."""
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        cap = os.environ.get("NBTUNE_VRAM_GIB")
        if cap:
            limit = int(float(cap) * 2**30)
            free, total = max(0, min(free, limit - torch.cuda.memory_reserved(device))), min(total, limit)
        capability = torch.cuda.get_device_capability(device)
        bf16 = capability >= (8, 0) or rocm()
        name = torch.cuda.get_device_name(device)
        count = torch.cuda.device_count()
        return DeviceFacts("cuda", name, total, free, capability, bf16, ram=ram_available(), count=count)
    if device.type == "mps":
        return DeviceFacts("mps", "Apple GPU", ram_total(), ram_available(), bf16=True, unified=True)
    name = platform.processor() or platform.machine() or "CPU"
    return DeviceFacts("cpu", f"CPU ({name}, {cpu_count()} cores)", ram_total(), ram_available(), bf16=False)


def choose_dtype(wanted: str, facts: DeviceFacts) -> tuple[str, str]:
    """The precision of frozen weights and products, and the reason for it, as ``("bf16", "…")``.

    Raises:
        PlanError: bf16 was asked for on a card that has none.
    """
    if wanted == "bf16" and facts.kind == "cuda" and not facts.bf16:
        raise PlanError(f"{facts.name} has no bf16 arithmetic", fix="write `dtype: fp16`, or leave it at auto")
    if wanted != "auto":
        return wanted, "asked for"
    if facts.kind == "cpu":
        return "fp32", "a CPU is fastest and exact in fp32"
    if facts.bf16:
        return "bf16", f"{facts.name} has bf16, which needs no loss scaling"
    return "fp16", f"{facts.name} has no bf16"


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of a name that `choose_dtype` gives: fp32, bf16 or fp16."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def memory_use(device: torch.device) -> MemoryUse:
    """What this process holds now, and held at most since `reset_peak` (on a CPU: since it began)."""
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
    """Start a new peak for `memory_use`."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache(device: torch.device) -> None:
    """Give memory that torch only keeps for later back to the device."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def fork_rng(device: torch.device, *, needed: bool = True) -> AbstractContextManager[Any]:
    """A context in which torch's random state may be changed; the user's own comes back afterwards."""
    if not needed:
        return nullcontext()
    import torch

    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for what the device was given before.

    A copy from pageable memory would wait for all of that, so it goes through pinned memory.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned() and pinnable():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@functools.cache
def pinnable() -> bool:
    """Whether this machine pins RAM for its GPU, found out by pinning some: WSL and tight containers may refuse.

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


def rocm() -> bool:
    """Whether this torch is a build for AMD's cards, which it calls CUDA too."""
    import torch

    return torch.version.hip is not None


def replayable(device: torch.device) -> bool:
    """Work on this device can be recorded once and replayed (CUDA graphs)."""
    return device.type == "cuda"


def capturing(device: torch.device) -> bool:
    """Work on this device is being recorded now, so nothing may wait for it."""
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


def claim(index: int) -> None:
    """Make the GPU of that number this process's own, where there are GPUs."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())


def choose_cards(gpus: Literal["all"] | int | tuple[int, ...], wanted: str) -> list[int]:
    """The numbers of the GPUs that are meant; of a CPU, those of its processes.

    Args:
        gpus: ``all``, how many, or which ones.
        wanted: as of `pick`.
    Raises:
        PlanError: there are fewer.
    """
    import torch

    if wanted == "cpu":
        return list(range(gpus)) if isinstance(gpus, int) else [0] if gpus == "all" else list(range(len(gpus)))
    mps = wanted != "cuda" and torch.backends.mps.is_available()
    there = torch.cuda.device_count() if wanted != "mps" and torch.cuda.is_available() else int(mps)
    chosen = list(range(there)) if gpus == "all" else list(range(gpus)) if isinstance(gpus, int) else list(gpus)
    if not there and gpus in ("all", 1):
        return [0]
    if any(number >= there for number in chosen):
        asked = f"{gpus} GPUs were" if isinstance(gpus, int) else f"GPU {max(chosen)} was"
        raise PlanError(
            f"{asked} asked for, torch finds {there}, from 0 on", fix="write `gpus: all`, or a smaller number"
        )
    return chosen


def only_cards(chosen: list[int], environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to a process's environment, so that it sees these GPUs alone, in this order."""
    import torch

    name = "HIP_VISIBLE_DEVICES" if rocm() and "CUDA_VISIBLE_DEVICES" not in environ else "CUDA_VISIBLE_DEVICES"
    seen = [word.strip() for word in environ.get(name, "").split(",") if word.strip()] or list(map(str, range(999)))
    return {name: ",".join(seen[number] for number in chosen)} if torch.cuda.is_available() else {}


def collectives() -> str:
    """The torch.distributed backend with which this machine's devices talk to each other."""
    import torch

    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def gpu_present() -> bool:
    """Whether this machine shows a GPU that torch may use, asked of the system and not of torch (milliseconds)."""
    if sys.platform == "win32":
        return bool(shutil.which("nvidia-smi"))
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/kfd", "/dev/dxg"))


class Later:
    """Numbers that are still being computed: copied out behind the work that makes them, read when they are there.

    `tensor.item()` would wait for all work that was queued since, and so for the next step too.

    Args:
        tensors: scalars on the device.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        import torch

        both = torch.stack([tensor.detach().float().reshape(()) for tensor in tensors])
        self._event: Any = None
        if both.device.type == "cuda":
            self._values = torch.empty(both.shape, dtype=both.dtype, pin_memory=pinnable())
            self._values.copy_(both, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._values = both

    def read(self) -> list[float]:
        """The numbers; waits for the work that makes them, and for nothing after it."""
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._values.tolist()]


def cpu_count() -> int:
    """Cores that this process may use: affinity and the cgroup's quota count, not what the machine shows."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, quota)) if quota else cores


def _cgroup_quota() -> int:
    v2 = _words(_CGROUP / "cpu.max")
    if len(v2) == 2 and v2[0] != "max":
        return max(1, int(v2[0]) // int(v2[1]))
    quota, period = _words(_CGROUP / "cpu/cpu.cfs_quota_us"), _words(_CGROUP / "cpu/cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        return max(1, int(quota[0]) // int(period[0]))
    return 0


def ram_total() -> int:
    """RAM that this process may use at most: the machine's, or its container's limit."""
    import psutil

    total: int = psutil.virtual_memory().total
    limit = _cgroup_bytes("memory.max", "memory/memory.limit_in_bytes")
    return min(total, limit) if limit else total


def ram_available() -> int:
    """RAM that can still be taken without swapping, within the container's limit."""
    import psutil

    available: int = psutil.virtual_memory().available
    limit = _cgroup_bytes("memory.max", "memory/memory.limit_in_bytes")
    used = _cgroup_bytes("memory.current", "memory/memory.usage_in_bytes")
    return max(0, min(available, limit - used)) if limit else available


def _cgroup_bytes(v2: str, v1: str) -> int:
    for path in (_CGROUP / v2, _CGROUP / v1):
        words = _words(path)
        if words and words[0].isdigit() and int(words[0]) < 2**60:
            return int(words[0])
    return 0


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
