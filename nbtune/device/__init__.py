"""The machine that is there: the one room that names CUDA, ROCm, MPS, cgroups and NVML.

Everything that it reports is in bytes. torch is imported when a device is asked for, not before.
"""

from nbtune.device.detect import (
    DeviceFacts,
    choose_cards,
    claim,
    collectives,
    describe,
    gpu_present,
    only_cards,
    pick,
    rocm,
)
from nbtune.device.dtype import choose_dtype, torch_dtype
from nbtune.device.limits import cpu_count, ram_available, ram_total
from nbtune.device.memory import MemoryUse, empty_cache, memory_use, pinnable, reset_peak
from nbtune.device.streams import Later, capturing, fork_rng, record, replayable, send, synchronize

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
