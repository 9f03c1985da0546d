"""Cores and RAM that this process may use: affinity and cgroups count, not what the machine shows. In bytes."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """Return how many cores this process may use: affinity and the cgroup's quota count, not what the machine shows.

    >>> nbtune.device.cpu_count() >= 1
    True
    """
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
    """Return the RAM that this process may use at most, bytes: the machine's, or its container's limit.

    >>> nbtune.device.ram_total() > 2**28
    True
    """
    import psutil

    total: int = psutil.virtual_memory().total
    limit = _cgroup_bytes("memory.max", "memory/memory.limit_in_bytes")
    return min(total, limit) if limit else total


def ram_available() -> int:
    """Return the RAM that can still be taken, in bytes, without swapping, within the container's limit.

    >>> 0 < nbtune.device.ram_available() <= nbtune.device.ram_total()
    True
    """
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
