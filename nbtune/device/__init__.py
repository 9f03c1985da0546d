"""The machine that is there: the one room that names CUDA, ROCm, MPS, cgroups and NVML.

Everything that it reports is in bytes. torch is imported when a device is asked for, not before.
"""

from nbtune.device.detect import choose_cards, describe, gpu_present, pick
from nbtune.device.dtype import choose_dtype, torch_dtype
from nbtune.device.facts import DeviceFacts
from nbtune.device.limits import cpu_count, ram_available, ram_total
from nbtune.device.machines import MACHINES, machine, shared_among
from nbtune.device.memory import (
    MemoryUse,
    empty_cache,
    is_out_of_memory,
    memory_use,
    pinnable,
    reset_peak,
    within_limits,
)
from nbtune.device.rates import measured_rates

__all__ = [
    "MACHINES",
    "DeviceFacts",
    "MemoryUse",
    "choose_cards",
    "choose_dtype",
    "cpu_count",
    "describe",
    "empty_cache",
    "gpu_present",
    "is_out_of_memory",
    "machine",
    "measured_rates",
    "memory_use",
    "pick",
    "pinnable",
    "ram_available",
    "ram_total",
    "reset_peak",
    "shared_among",
    "torch_dtype",
    "within_limits",
]
