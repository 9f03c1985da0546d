"""How fast this machine's GPU multiplies, how fast the host's memory reaches it, and how fast the host launches work:
measured once, and kept (unless others work on the card meanwhile).

A tenth of a second each, for plans that weigh arithmetic against transfers. A step reaches some four fifths of what a
product by itself does (0.8 of 700 TFLOP/s on an H200), which is what `flops` stands for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from nbtune.atomic_io import read_json, replace_file
from nbtune.device.memory import empty_cache, pinnable
from nbtune.device.nvml import card_of
from nbtune.device.streams import synchronize
from nbtune.disk import cache_folder

if TYPE_CHECKING:
    import torch

_FILE = "rates.json"  # in the cache
_SHARE = 0.8  # of a product's rate that a training step reaches
_SIDE, _BYTES = 4096, 2**26
_SECONDS = 0.1
_LAUNCHES = 64  # small kernels in a row, forth and back
_BUSY = 20.0  # percent of the time
_ROOM = 2**29  # bytes of the GPU's memory that must be free for it


class Rates(NamedTuple):
    """What was measured; zeros where there is no GPU, no room on it, or it refuses.

    `flops` are 16-bit products a second in training, `link` bytes a second from pinned memory, and `launch` the seconds
    in which the host launches a small kernel and its gradient's.
    """

    flops: float = 0.0
    link: float = 0.0
    launch: float = 0.0


def measured_rates(device: torch.device) -> Rates:
    """Return how fast a GPU, its link and its host are.

    >>> nbtune.device.measured_rates(nbtune.device.pick("cpu"))
    Rates(flops=0.0, link=0.0, launch=0.0)
    """
    import torch

    if device.type != "cuda" or torch.cuda.mem_get_info(device)[0] < _ROOM:
        return Rates()
    return _rates(torch.cuda.get_device_name(device), device)


@functools.cache
def _rates(name: str, device: torch.device) -> Rates:
    known = _read()
    if name in known:
        return known[name]
    alone = _idle(device)
    try:
        found = Rates(_products(device), _transfers(device), _launches(device))
    except RuntimeError:  # no memory, or none to pin
        return Rates()
    empty_cache(device)  # what is planned next counts what is free
    if alone:  # what others left of the card is no measure for later plans
        _write({**_read(), name: found})
    return found


def _idle(device: torch.device) -> bool:
    """Return whether nobody works on the card, as far as it tells."""
    card = card_of(device)
    return card is None or card.read().busy <= _BUSY


def _products(device: torch.device) -> float:
    import torch

    dtype = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    x = torch.zeros((_SIDE, _SIDE), dtype=dtype, device=device).normal_()
    y = torch.empty_like(x)
    return _SHARE * 2 * _SIDE**3 / _seconds_each(lambda: torch.mm(x, x, out=y), device)


def _transfers(device: torch.device) -> float:
    import torch

    host = torch.empty(_BYTES, dtype=torch.uint8, pin_memory=pinnable())
    there = torch.empty_like(host, device=device)
    return _BYTES / _seconds_each(lambda: there.copy_(host, non_blocking=True), device)


def _launches(device: torch.device) -> float:
    """Return the least of many times, since a host has other things to do, too."""
    import torch

    start = torch.ones(16, device=device, requires_grad=True)
    took: list[float] = []
    until = time.perf_counter() + _SECONDS
    while not took or time.perf_counter() < until:
        synchronize(device)
        began = time.perf_counter()
        x = start
        for _ in range(_LAUNCHES):
            x = x * 1.0
        torch.autograd.grad(x.sum(), start)
        took.append(time.perf_counter() - began)
    return min(took) / _LAUNCHES


def _seconds_each(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a piece of work takes, of many that are launched at once."""
    count, took = 1, 0.0
    while took < _SECONDS:
        count *= 2
        work()
        synchronize(device)
        began = time.perf_counter()
        for _ in range(count):
            work()
        synchronize(device)
        took = time.perf_counter() - began
    return took / count


def _read() -> dict[str, Rates]:
    """Return what was measured before, by the GPU's name; what is no such file is no news."""
    try:
        found = read_json(cache_folder() / _FILE) or {}
        each = {name: Rates(*map(float, rates)) for name, rates in found.items() if len(rates) == len(Rates._fields)}
    except (OSError, ValueError, TypeError):
        return {}
    return {name: rates for name, rates in each.items() if all(0 < rate < 1e18 for rate in rates)}


def _write(found: dict[str, Rates]) -> None:
    with contextlib.suppress(OSError), replace_file(cache_folder() / _FILE, shared=True) as fresh:  # or measured again
        fresh.write_text(json.dumps(found), encoding="utf-8")
