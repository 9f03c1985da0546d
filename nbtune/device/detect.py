"""Which devices are there, and which of them a run takes."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbtune.device.facts import DeviceFacts
from nbtune.device.limits import (
    core_limit,
    cpu_count,
    ram_available,
    ram_held,
    ram_limit,
    ram_total,
    threads_wished,
    visible_cores,
    vram_limits,
)
from nbtune.device.memory import allocator_limit
from nbtune.device.rates import measured_rates
from nbtune.device.site_file import smallest
from nbtune.errors import PlanError

if TYPE_CHECKING:
    import torch

_A_FEW = 4  # processes
_PROCESS = 2**29  # bytes that Python and torch take before there is a model


def pick(wanted: str = "auto", index: int | None = None) -> torch.device:
    """Return the device to train on.

    >>> nbtune.device.pick("cpu")
    device(type='cpu')

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


def describe(
    device: torch.device, *, vram_gib: float | None = None, ram_gib: float | None = None, rates: bool = False
) -> DeviceFacts:
    """Return name, memory (bytes) and abilities of a device, within all limits there are: a spec's, `NBTUNE_VRAM_GIB`,
    `NBTUNE_RAM_GIB`, those of a container (cgroup) and of the machine's owner, torch's memory fraction.

    >>> nbtune.device.describe(nbtune.device.pick("cpu")).kind
    'cpu'

    Args:
        vram_gib, ram_gib: of a spec.
        rates: also how fast a GPU is, for a plan; measured where it is not known yet.
    Raises:
        PlanError: one of the limits is no number.
    """
    import torch

    limit, cores = core_limit(), cpu_count()
    why = f"{limit.why}, {visible_cores()} cores are visible" if limit else ""
    host: dict[str, Any] = {"cores": cores, "cores_why": why, "threads": threads_wished()}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        most = smallest(*vram_limits(vram_gib), allocator_limit(device))
        if most and most.value < total:
            total, free = most.value, max(0, min(free, most.value - torch.cuda.memory_reserved(device)))
            host |= {"cap": most.value, "cap_why": most.why}
        capability = torch.cuda.get_device_capability(device)
        bf16 = capability >= (8, 0) or rocm()
        name = torch.cuda.get_device_name(device)
        host |= {"ram": ram_available(ram_gib), "count": torch.cuda.device_count()}
        if rates:
            host |= measured_rates(device)._asdict()
        return DeviceFacts("cuda", name, total, free, capability, bf16, **host)
    mps = device.type == "mps"
    gpus = vram_limits(vram_gib) if mps else []
    most = smallest(ram_limit(ram_gib), *gpus)
    total, free = ram_total(), min([ram_available(ram_gib), *(one.value - ram_held() for one in gpus)])
    if most and most.value <= total:
        total = most.value
        host |= {"cap": most.value, "cap_why": most.why}
    host["held"] = ram_held()
    if mps:
        return DeviceFacts("mps", "Apple GPU", total, max(0, free), bf16=True, unified=True, **host)
    name = platform.processor() or platform.machine() or "CPU"
    return DeviceFacts(
        "cpu", f"CPU ({name}, {cores} core{'s' if cores != 1 else ''})", total, max(0, free), bf16=False, **host
    )


def rocm() -> bool:
    """Return whether this torch is a build for AMD's cards, which it calls CUDA too."""
    import torch

    return torch.version.hip is not None


def claim(index: int) -> None:
    """Make the GPU of that number this process's own, where there are GPUs."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())


def choose_cards(gpus: Literal["all"] | int | tuple[int, ...], wanted: str) -> list[int]:
    """Return the numbers of the GPUs that are meant; of a CPU, those of its processes.

    >>> nbtune.device.choose_cards(1, "cpu")
    [0]

    Args:
        gpus: ``all``, how many, or which ones.
        wanted: as of `pick`.
    Raises:
        PlanError: there are fewer; or the CPU would not carry so many processes.
    """
    count = gpus if isinstance(gpus, int) else 1 if gpus == "all" else len(gpus)
    if wanted == "cpu":
        most = _most_processes()
        if count > most:
            raise PlanError(
                f"`gpus` asks for {count} processes, and this CPU ({cpu_count()} cores, {ram_available() / 2**30:.1f} "
                f"GiB of memory free) carries {most} at most",
                fix=f"write `gpus: {most}` or less; each process trains its share of the same step",
            )
        return list(range(count))
    import torch

    mps = wanted != "cuda" and torch.backends.mps.is_available()
    there = torch.cuda.device_count() if wanted != "mps" and torch.cuda.is_available() else int(mps)
    if not there and gpus in ("all", 1):
        return [0]
    if count > there or max(gpus if isinstance(gpus, tuple) else [0]) >= there:
        requested = f"{gpus} GPUs were" if isinstance(gpus, int) else f"GPU {max(gpus)} was"
        fix = (
            "write `gpus: all`, or a smaller number" if there else "leave `gpus` out; `nbtune doctor` says what is here"
        )
        found = f"torch finds {there}, counted from 0" if there else "torch finds none here"
        raise PlanError(f"{requested} asked for, {found}", fix=fix)
    return list(range(there)) if gpus == "all" else list(range(count)) if isinstance(gpus, int) else list(gpus)


def _most_processes() -> int:
    """Return how many processes a CPU run may have: one a core, a few on any machine (to try it),
    and memory for each."""
    return max(1, min(max(cpu_count(), _A_FEW), ram_available() // _PROCESS))


def only_cards(chosen: list[int], environ: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to a process's environment, so that it sees these GPUs alone, in this order."""
    import torch

    name = "HIP_VISIBLE_DEVICES" if rocm() and "CUDA_VISIBLE_DEVICES" not in environ else "CUDA_VISIBLE_DEVICES"
    seen = [word.strip() for word in environ.get(name, "").split(",") if word.strip()] or list(map(str, range(999)))
    return {name: ",".join(seen[number] for number in chosen)} if torch.cuda.is_available() else {}


def collectives() -> str:
    """Return the torch.distributed backend with which this machine's devices talk to each other."""
    import torch

    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def gpu_present() -> bool:
    """Return whether this machine shows a GPU that torch may use, asked of the system and not of
    torch (milliseconds).

    >>> nbtune.device.gpu_present() in (True, False)
    True
    """
    if sys.platform == "win32":
        return bool(shutil.which("nvidia-smi"))
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/kfd", "/dev/dxg"))
