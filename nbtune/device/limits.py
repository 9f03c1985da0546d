"""Cores and RAM that this process may use: affinity, cgroups and the machine's owner count, not what the machine shows.

In bytes. A process is in a group of each kind (v2: one, v1: one for each controller), and that one in others: the
smallest limit on the way up holds. In a container the paths are often the host's, and its own group is the root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nbtune.device.site_file import Limit, environment_limit, gib, site_limit, smallest

_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_NO_LIMIT = 2**60  # v1 writes a huge number where there is none
_CONTAINER = "the limit of its container (cgroup)"
SPEC_RAM, SPEC_VRAM = "`memory.ram_gib`", "`memory.vram_gib`"


def cpu_count() -> int:
    """Return how many cores this process may use: affinity and the cgroup's quota count, not what the machine shows.

    >>> nbtune.device.cpu_count() >= 1
    True
    """
    limit = core_limit()
    return min(visible_cores(), limit.value) if limit else visible_cores()


def visible_cores() -> int:
    """Return how many cores this process sees, whatever share of them it has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def core_limit() -> Limit | None:
    """Return what leaves this process less than it sees: a quota of the container, or the machine's owner."""
    shares = [share for group in _groups("cpu") if (share := _share_of(group))]
    quota = Limit(max(1, int(min(shares))), _CONTAINER) if shares else None
    limit = smallest(quota, site_limit("threads"))
    return limit if limit and limit.value < visible_cores() else None


def share_in_words() -> str:
    """Return what this process may take of the machine, and whose limits that is."""
    cores, visible, quota, most = cpu_count(), os.cpu_count() or 1, core_limit(), ram_limit()
    of_all = f" (of {visible} in the machine{f': {quota.why}' if quota else ''})" if cores < visible else ""
    whose = f": {most.why}" if most else ""
    free, total = (f"{count / 2**30:.1f} GiB" for count in (ram_available(), ram_total()))
    return f"{cores} core{'s' if cores != 1 else ''}{of_all}, {free} of {total} RAM free{whose}"


def threads_wished() -> int:
    """Return how many threads OMP_NUM_THREADS gives each process, as torch reads it; 0: it says nothing."""
    word = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(word) if word.isdigit() else 0


def _share_of(group: Path) -> float:
    v2 = _words(group / "cpu.max")
    quota, period = v2 if len(v2) == 2 else (_word(group / "cpu.cfs_quota_us"), _word(group / "cpu.cfs_period_us"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else 0.0


def ram_total() -> int:
    """Return the RAM that this process may use at most, bytes: the machine's, or what limits it.

    >>> nbtune.device.ram_total() > 2**28
    True
    """
    limit, total = ram_limit(), _memory().total
    return min(total, limit.value) if limit else total


def ram_limit(asked: float | None = None) -> Limit | None:
    """Return what limits this process's RAM, where it is less than the machine has.

    Args:
        asked: GiB, of a spec.
    """
    groups = [Limit(limit, _CONTAINER) for group in _groups("memory") if (limit := _most_bytes(group))]
    least = smallest(*groups, *_own_limits(asked))
    return least if least and least.value < _memory().total else None


def ram_available(asked: float | None = None) -> int:
    """Return the RAM that can still be taken, in bytes, without swapping, within all limits.

    >>> 0 < nbtune.device.ram_available() <= nbtune.device.ram_total()
    True

    Args:
        asked: a limit of one's own, GiB.
    """
    free = [_memory().available]
    free += [limit - _taken(group) for group in _groups("memory") if (limit := _most_bytes(group))]
    free += [limit.value - ram_held() for limit in _own_limits(asked)]
    return max(0, min(free))


def ram_held() -> int:
    """Return the RAM that this process has, bytes: on Linux less what it has of files, which is dropped when memory is
    short."""
    import psutil

    held = int(psutil.Process().memory_info().rss)
    return held - min(_of_files(), held)


def _of_files() -> int:
    """Return the bytes of files that this process has in memory, its libraries' among them; 0: that is not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    found = next((line.split()[1] for line in lines if line.startswith("RssFile:")), "0")
    return int(found) * 1024


def _own_limits(asked: float | None) -> list[Limit]:
    """Return the limits that are of one process, whatever else is in its group."""
    spec = None if asked is None else gib(asked, SPEC_RAM)
    limits = (spec, environment_limit("NBTUNE_RAM_GIB"), site_limit("ram_gib"))
    return [limit for limit in limits if limit is not None]


def vram_limits(asked: float | None = None) -> list[Limit]:
    """Return what limits this process's share of a GPU's memory, but for torch's own fraction.

    Args:
        asked: GiB, of a spec.
    """
    spec = None if asked is None else gib(asked, SPEC_VRAM)
    limits = (spec, environment_limit("NBTUNE_VRAM_GIB"), site_limit("vram_gib"))
    return [limit for limit in limits if limit is not None]


def _memory():  # type: ignore[no-untyped-def]
    import psutil

    return psutil.virtual_memory()


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the groups that this process is in, from its own up."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        inside = PurePosixPath(path)
        known = inside.is_absolute() and ".." not in inside.parts
        for root in (_CGROUP / controller, _CGROUP / names) if names else (_CGROUP, _CGROUP / "unified"):
            for part in (inside, *inside.parents) if known else (PurePosixPath("/"),):
                yield root / part.relative_to("/")


def _most_bytes(group: Path) -> int:
    """Return the bytes that a group may have; 0: there is no limit."""
    words = (_word(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes"))
    limits = [int(word) for word in words if word.isdigit()]
    return min((limit for limit in limits if 0 < limit < _NO_LIMIT), default=0)


def _taken(group: Path) -> int:
    """Return the bytes that a group has and would not give back: files that were read are dropped when it is short."""
    used = _word(group / "memory.current") or _word(group / "memory.usage_in_bytes")
    pairs = dict(zip(words[::2], words[1::2], strict=False)) if (words := _words(group / "memory.stat")) else {}
    cached = pairs.get("total_inactive_file", pairs.get("inactive_file", "0"))
    return max(0, int(used) - int(cached)) if used.isdigit() and cached.isdigit() else 0


def _word(path: Path) -> str:
    return next(iter(_words(path)), "")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
