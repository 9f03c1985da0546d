"""What the processes of several machines must have in common, and what of it is worth a word.

Each tells what it sees; all look at the same list, so that all go on, or none does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbtune.errors import NbtuneError, TrainError
from nbtune.store.folder import read_spec

_APART = 60.0  # seconds between two clocks that are worth a word
_ALIKE = 0.05  # of a GPU's memory: what two of a kind differ by


@dataclass(frozen=True)
class Seen:
    """What one process sees.

    Attributes:
        host: its machine.
        versions: of packages on which losses depend, as ``name version``.
        spec: a mark of the run's spec; "": there is no such folder.
        devices, wanted: GPUs of the machine, and its processes that want one; 0 and 0 on a CPU.
        name, memory: of its GPU; bytes.
        now: seconds since 1970.
    """

    host: str
    versions: tuple[str, ...] = ()
    spec: str = ""
    devices: int = 0
    wanted: int = 0
    name: str = ""
    memory: int = 0
    now: float = 0.0


def look(folder: Path) -> Seen:
    """Return what this process sees."""
    import torch

    from nbtune import __version__, device

    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft")]
    versions = (f"nbtune {__version__}", f"Python {platform.python_version()}", *packages)
    try:
        text = (folder / "spec.yaml").read_bytes()
    except OSError:
        return Seen(_host(), versions, now=time.time())
    mark = hashlib.sha256(text).hexdigest()[:16]
    try:
        where = device.pick(read_spec(folder).device)
    except NbtuneError:  # it asks for a GPU and sees none: whoever prepares the run says so
        return Seen(_host(), versions, mark, now=time.time())
    if where.type != "cuda":
        return Seen(_host(), versions, mark, now=time.time())
    facts = device.describe(torch.device("cuda", 0))
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Seen(_host(), versions, mark, facts.count, wanted, facts.name, facts.total, time.time())


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def differences(seen: Sequence[Seen]) -> list[str]:
    """Return what all should know, a sentence each.

    Raises:
        TrainError: they cannot train together.
    """
    first = seen[0]
    for rank, one in enumerate(seen):
        who = f"process {rank + 1} of {len(seen)}, on {one.host},"
        if not one.spec:
            raise TrainError(
                f"{who} does not see the run's folder", fix="keep runs where all machines see them: `--runs DIR`"
            )
        if one.spec != first.spec:
            raise TrainError(f"{who} sees another spec.yaml in the run's folder", fix="let all see the same folder")
        for mine, theirs in zip(first.versions, one.versions, strict=True):
            if mine != theirs:
                raise TrainError(f"{who} has {theirs}, the first one {mine}", fix="install the same on all machines")
        if one.wanted > one.devices:
            raise TrainError(
                f"{one.host} has {one.devices} GPUs for {one.wanted} processes",
                fix=f"ask for {one.devices} a machine, or for machines that have {one.wanted}",
            )
    return [words for words in (_kinds(seen), _clocks(seen)) if words]


def _kinds(seen: Sequence[Seen]) -> str:
    least, most = (pick(seen, key=lambda one: one.memory) for pick in _ENDS)
    if least.name == most.name and most.memory <= least.memory * (1 + _ALIKE):
        return ""
    return (
        f"the GPUs differ: {most.name} on {most.host}, {least.name} on {least.host}; "
        "each step waits for the slowest, and the plan is the smallest one's"
    )


def _clocks(seen: Sequence[Seen]) -> str:
    early, late = (pick(seen, key=lambda one: one.now) for pick in _ENDS)
    apart = late.now - early.now
    if apart < _APART:
        return ""
    return f"the clock of {late.host} is {apart:.0f} s ahead of that of {early.host}; times are those of {seen[0].host}"


_ENDS: tuple[Callable[..., Seen], Callable[..., Seen]] = (min, max)
