"""What NVIDIA's driver says of a card while it works: how busy it is, and why it has lowered its clocks.

The driver's own library (NVML) is called directly: it is there wherever the driver is, and asking it waits for no work
on the card. Whatever is missing (the library, a function, a card that does not tell) is "not known", never an error.
Numbers of its header, nvml.h: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_HEAT, _POWER = 0x20 | 0x40, 0x4 | 0x80  # nvmlClocksEventReason…: software and hardware thermal; power cap, power brake
_HARDWARE = 0x8  # "one of heat, power brake, or voltage": said alone by old drivers


@dataclass(frozen=True)
class Reading:
    """`busy` in percent of the time (−1: not known), °C and watts (0: not known), `slowed` as of `reasons`."""

    busy: float = -1.0
    temperature: float = 0.0
    watts: float = 0.0
    slowed: str = ""


def reasons(mask: int) -> str:
    """Return why clocks are lowered, of NVML's bits: ``"heat"``, ``"power"``, both, or nothing.

    >>> reasons(0x4 | 0x20), reasons(0x1)
    ('heat, power', '')
    """
    heat, power = bool(mask & _HEAT), bool(mask & _POWER)
    if mask & _HARDWARE and not power:
        heat = True
    return ", ".join(name for name, true in (("heat", heat), ("power", power)) if true)


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Card:
    """One card, by the id that the driver gives it.

    Args:
        uuid: as in ``nvidia-smi -L``, with or without its prefix.
    Raises:
        OSError: there is no such library or card here.
    """

    def __init__(self, uuid: str) -> None:
        self._library: Any = ctypes.CDLL(_LIBRARY)
        self._handle = ctypes.c_void_p()
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        opened = self._ask("nvmlInit_v2") and self._ask(
            "nvmlDeviceGetHandleByUUID", name.encode(), ctypes.byref(self._handle)
        )
        if not opened:
            raise OSError(f"the driver knows no card {name}")

    def _ask(self, name: str, *arguments: Any) -> bool:
        function = getattr(self._library, name, None)
        return function is not None and function(*arguments) == 0

    def _number(self, name: str, kind: Any, *before: Any) -> int | None:
        value = kind()
        return int(value.value) if self._ask(name, self._handle, *before, ctypes.byref(value)) else None

    def read(self) -> Reading:
        """Return how it is now."""
        used = _Utilization()
        busy = self._ask("nvmlDeviceGetUtilizationRates", self._handle, ctypes.byref(used))
        mask = self._number("nvmlDeviceGetCurrentClocksEventReasons", ctypes.c_ulonglong)
        if mask is None:  # drivers before 535 call it so
            mask = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        heat = self._number("nvmlDeviceGetTemperature", ctypes.c_uint, ctypes.c_uint(0))
        milliwatts = self._number("nvmlDeviceGetPowerUsage", ctypes.c_uint)
        return Reading(
            busy=float(used.gpu) if busy else -1.0,
            temperature=float(heat or 0),
            watts=(milliwatts or 0) / 1000,
            slowed=reasons(mask or 0),
        )


def card_of(device: torch.device) -> Card | None:
    """Return the driver's view of a device, where it has one."""
    if device.type != "cuda":
        return None
    import torch

    try:
        facts: Any = torch.get_device_module(device.type).get_device_properties(device)
        return Card(str(facts.uuid))
    except (OSError, AttributeError, RuntimeError):  # no library, an AMD card, an old torch
        return None
