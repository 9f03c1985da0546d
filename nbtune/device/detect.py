"""Which devices are there, and which of them a run takes."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nbtune.device.limits import cpu_count, ram_available, ram_total
from nbtune.errors import PlanError

if TYPE_CHECKING:
    import torch

_A_FEW = 4  # processes
_PROCESS = 2**29  # bytes that Python and torch take before there is a model


@dataclass(frozen=True)
class DeviceFacts:
    """What the planner needs to know of a device; `capability` is CUDA's (major, minor), (0, 0) elsewhere.

    `ram` is what the host has free, for weights and activations that wait there; `count`: of such devices. `flops`
    (achieved, 16-bit products a second) and `link` (bytes a second from the host) are those of a machine that is not
    here (`nbtune.device.machine`); 0: as any of its kind.
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
    flops: float = 0.0
    link: float = 0.0


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


def describe(device: torch.device) -> DeviceFacts:
    """Return name, memory (bytes) and abilities of a device; `NBTUNE_VRAM_GIB` lowers what a GPU seems to have.

    >>> nbtune.device.describe(nbtune.device.pick("cpu")).kind
    'cpu'
    """
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
        raise PlanError(
            f"{requested} asked for, torch finds {there}, from 0 on", fix="write `gpus: all`, or a smaller number"
        )
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
