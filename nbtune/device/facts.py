"""What the planner knows of a device, whether it is here or not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nbtune.device.limits import SPEC_RAM, SPEC_VRAM


@dataclass(frozen=True)
class DeviceFacts:
    """What the planner needs to know of a device; `capability` is CUDA's (major, minor), (0, 0) elsewhere.

    `ram` is what the host has free, for weights and activations that wait there; `count`: of such devices. `flops`
    (achieved, 16-bit products a second) and `link` (bytes a second from the host) are those of a machine that is not
    here (`nbtune.device.machine`), or were measured (`measured_rates`), as `launch` was (seconds in which the host
    launches a small kernel and its gradient's); 0: as any of its kind.

    `cap` is what the process may take at most of `total`, which it is then, too (0: nothing limits it), and `cap_why`
    whose limit that is; `held` what it has of the host's memory already; `cores` how many it may use (0: not known),
    `cores_why` why these are not all that it sees, and `threads` how many each process was told to take (0: nothing).

    `peer` and `network` are bytes a second that a device sends to another of its machine, and to other machines, by
    their makers, and `nodes` how many such machines there are; of a machine that is not here.
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
    launch: float = 0.0
    cap: int = 0
    cap_why: str = ""
    held: int = 0
    cores: int = 0
    cores_why: str = ""
    threads: int = 0
    peer: float = 0.0
    network: float = 0.0
    nodes: int = 1

    def capped(self, *, vram_gib: float | None = None, ram_gib: float | None = None) -> DeviceFacts:
        """Return a machine that is not here, with a spec's limits."""
        asked = vram_gib if self.kind == "cuda" else min((x for x in (vram_gib, ram_gib) if x), default=None)
        ram = min(self.ram, int(ram_gib * 2**30)) if ram_gib and self.kind == "cuda" else self.ram
        if asked is None or asked * 2**30 >= self.total:
            return replace(self, ram=ram)
        cap = int(asked * 2**30)
        why = SPEC_VRAM if asked == vram_gib else SPEC_RAM
        return replace(self, total=cap, free=min(self.free, cap), ram=ram, cap=cap, cap_why=why)
