"""Machines that are not here, by name: what a plan needs to know of them.

Memory is what torch reports of the card, free what is left of it beside a CUDA context; rates are the makers' for dense
16-bit products and the host's link. A plan for such a machine is reckoned, nothing of it was tried there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from nbtune.device.facts import DeviceFacts
from nbtune.errors import PlanError

_CONTEXT = 0.3  # GiB that a process takes before it holds a tensor
_GIB = 2**30
_GBIT = 1.25e8  # bytes


@dataclass(frozen=True)
class Machine:
    """One GPU, and the host that it usually comes with.

    Args:
        title: what people call it.
        gib: the card's memory as torch reports it.
        capability: CUDA's (major, minor); (0, 0): not NVIDIA's.
        tflops: dense 16-bit products, 10^12 a second, by the maker.
        link: bytes a second between host and card, 10^9.
        ram: GiB that the host has free; 0: twice the card's memory is taken.
        count: of such cards in the machine.
        kind: ``cuda`` or ``mps``.
        peer: bytes a second that a card sends to others of its machine, 10^9; 0: as to the host.
        network: those that it sends to other machines, in the machines that it is sold in; 0: `_ETHERNET` of them all.
    """

    title: str
    gib: float
    capability: tuple[int, int]
    tflops: float
    link: float
    ram: float = 0
    count: int = 1
    kind: str = "cuda"
    peer: float = 0
    network: float = 0


MACHINES: dict[str, Machine] = {
    "t4": Machine("NVIDIA T4", 14.74, (7, 5), 65, 12),
    "v100-16": Machine("NVIDIA V100 16 GB", 15.77, (7, 0), 125, 12, peer=150, network=3),
    "v100-32": Machine("NVIDIA V100 32 GB", 31.74, (7, 0), 125, 12, peer=150, network=3),
    "l4": Machine("NVIDIA L4", 22.03, (8, 9), 121, 24),
    "a10g": Machine("NVIDIA A10G", 22.06, (8, 6), 70, 24),
    "rtx3060": Machine("RTX 3060 12 GB", 11.76, (8, 6), 51, 24),
    "rtx3090": Machine("RTX 3090", 23.68, (8, 6), 71, 24),
    "rtx4060ti-16": Machine("RTX 4060 Ti 16 GB", 15.60, (8, 9), 88, 12),
    "rtx4070": Machine("RTX 4070", 11.72, (8, 9), 117, 24),
    "rtx4090": Machine("RTX 4090", 23.53, (8, 9), 165, 24),
    "rtx5090": Machine("RTX 5090", 31.36, (12, 0), 210, 48),
    "a6000": Machine("RTX A6000", 47.43, (8, 6), 155, 24),
    "l40s": Machine("NVIDIA L40S", 44.39, (8, 9), 362, 24),
    "a100-40": Machine("NVIDIA A100 40 GB", 39.49, (8, 0), 312, 24, peer=300, network=25),
    "a100-80": Machine("NVIDIA A100 80 GB", 79.15, (8, 0), 312, 24, peer=300, network=25),
    "h100": Machine("NVIDIA H100 80 GB", 79.11, (9, 0), 989, 50, peer=450, network=50),
    "h200": Machine("NVIDIA H200", 139.72, (9, 0), 989, 50, peer=450, network=50),
    "b200": Machine("NVIDIA B200", 178.35, (10, 0), 2250, 50, peer=900, network=50),
    "colab": Machine("Colab's free T4", 14.74, (7, 5), 65, 12, ram=11),
    "kaggle": Machine("Kaggle's two T4", 14.74, (7, 5), 65, 12, ram=28, count=2),
    "mac-8": Machine("Mac with 8 GB", 8, (0, 0), 5, 0, kind="mps"),
    "mac-16": Machine("Mac with 16 GB", 16, (0, 0), 7, 0, kind="mps"),
    "mac-32": Machine("Mac with 32 GB", 32, (0, 0), 14, 0, kind="mps"),
    "mac-64": Machine("Mac with 64 GB", 64, (0, 0), 28, 0, kind="mps"),
    "mac-128": Machine("Mac with 128 GB", 128, (0, 0), 28, 0, kind="mps"),
}
"""Name → machine. Card names hold without their dashes, too."""

_NAMES = {re.sub(r"[^a-z0-9]", "", name): name for name in MACHINES} | {"a100": "a100-80", "v100": "v100-16"}
_SMALLEST = 1  # GB of a card
_ETHERNET = 25  # Gbit a second of a machine, where nothing else is known
_MOST_NODES = 4096
_USABLE = 0.7  # of a Mac's memory: the system and other programs have the rest
_ACHIEVED, _OF_HOPPER = 0.4, 0.57  # of what makers promise; the second as measured on an H200


def machine(name: str, *, nodes: int = 1, network: float | None = None) -> DeviceFacts:
    """Return the facts of a machine that is not here, or of several like it.

    >>> facts = nbtune.device.machine("2xT4")
    >>> facts.name, facts.count, facts.bf16
    ('NVIDIA T4', 2, False)
    >>> round(nbtune.device.machine("24GB").total / 2**30)
    24

    Args:
        name: one of `MACHINES`, several of it (``8xh100``), or a size (``24GB``: a card of today with that memory).
        nodes: how many such machines.
        network: Gbit a second that each of them sends to the others; unset: as they are usually sold.
    Raises:
        PlanError: there is none of that name, or it is not had in such numbers.
    """
    if not 1 <= nodes <= _MOST_NODES:
        raise PlanError(f"{nodes} machines are not planned for", place="nodes", fix=f"1 to {_MOST_NODES:,}")
    if network is not None and not 0 < network < math.inf:
        raise PlanError(f"a network of {network:g} Gbit a second sends nothing", place="network", fix="write 100")
    text = str(name).strip().lower()
    many = re.fullmatch(r"([0-9]{1,4})\s*[x×]\s*(.+)", text)
    count, text = (int(many[1]), many[2]) if many else (0, text)
    size = re.fullmatch(r"([0-9]{1,4}(?:\.[0-9]+)?)\s*(?:gb|gib|g)", text)
    if size and float(size[1]) >= _SMALLEST:
        found = Machine(f"a card with {size[1]} GB", float(size[1]), (8, 6), 70, 24)
    else:
        key = re.sub(r"[^a-z0-9]", "", text).removeprefix("nvidia").removeprefix("geforce")
        if key not in _NAMES or (many and not _is_had_in_numbers(_NAMES[key], count)):
            near = [_NAMES[word] for word in get_close_matches(key, _NAMES, n=3, cutoff=0.5)]
            raise PlanError(
                f"there is no machine `{name}` to plan for"[:120],
                fix=f"write {' or '.join(near)}, or a size as 24GB"
                if near
                else f"one of {', '.join(MACHINES)}; 8xh100; or a size as 24GB",
            )
        found = MACHINES[_NAMES[key]]
    found = replace(found, count=count or found.count)
    if nodes > 1 and found.kind != "cuda":
        raise PlanError(f"several of {found.title} do not train together", place="nodes", fix="leave it out")
    facts = replace(_facts(found), nodes=nodes)
    return facts if network is None else replace(facts, network=network * _GBIT / found.count)


def _is_had_in_numbers(name: str, count: int) -> bool:
    return count == 1 or (count > 1 and MACHINES[name].kind == "cuda" and MACHINES[name].count == 1)


def shared_among(facts: DeviceFacts, gpus: Literal["all"] | int | tuple[int, ...], wanted: str) -> int:
    """Return how many of a machine's devices share each step.

    >>> nbtune.device.shared_among(nbtune.device.machine("8xh100"), "all", "auto")
    8

    Args:
        facts: of `machine`.
        gpus: ``all``, how many, or which ones.
        wanted: as of `pick`.
    Raises:
        PlanError: it has fewer, or none of the kind that is wanted.
    """
    if wanted not in ("auto", facts.kind):
        raise PlanError(f"`device: {wanted}` is not what {facts.name} has", fix="write `device: auto`")
    asked = facts.count if gpus == "all" else gpus if isinstance(gpus, int) else max(gpus) + 1
    if asked > facts.count:
        more = f"plan for {asked}x of it, as `--machine {asked}xh100`" if facts.kind == "cuda" else "write `gpus: 1`"
        raise PlanError(f"`gpus` asks for {asked}, the machine has {facts.count} {facts.name}", fix=more)
    return asked if isinstance(gpus, int | str) else len(gpus)


def _facts(found: Machine) -> DeviceFacts:
    total = int(found.gib * _GIB)
    apple = found.kind == "mps"
    return DeviceFacts(
        found.kind,
        found.title,
        total,
        int(total * _USABLE) if apple else total - int(_CONTEXT * _GIB),
        found.capability,
        bf16=apple or found.capability >= (8, 0),
        unified=apple,
        ram=0 if apple else int((found.ram or 2 * found.gib) * _GIB),
        count=found.count,
        flops=found.tflops * 1e12 * (_OF_HOPPER if found.capability[0] == 9 else _ACHIEVED),
        link=found.link * 1e9,
        peer=(found.peer or found.link) * 1e9,
        network=found.network * 1e9 or _ETHERNET * _GBIT / found.count,
    )
