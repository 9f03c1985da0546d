"""A process that sees another card than the one that is there: its memory, abilities, link, threads, and a name.

    PLAYED=colab PLAYED_AT=FOLDER PYTHONPATH=FOLDER:… python …      its sitecustomize.py imports this

For `tests/gpu/bench_played.py`, whose runs start processes of their own. Arithmetic is that of the card that is
there. Each process writes what it holds to FOLDER/PID.json. Held to the link are `copy_`, `to` and `cuda` between host
and card, one after the other in each direction, by kernels that wait on the card's own clock; a kernel that gathers
from pinned memory by itself is not.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
CONTEXT = int(0.3 * GIB)  # of each process on the card: what `nbtune.device.machines` reckons with, too
RING = 8192  # copies that may be under way, or recorded


@dataclass(frozen=True)
class Card:
    """A card that is not there; `gib` is all that torch would report, `link` bytes a second in each direction."""

    name: str
    gib: float
    capability: tuple[int, int]
    link: float
    machine: str
    threads: int = 0
    ram_gib: float = 0


CARDS = {
    "colab": Card("a T4 that is played", 14.6, (7, 5), 12e9, "colab", threads=2, ram_gib=12.7),
    "rtx3090": Card("an RTX 3090 that is played", 23.68, (8, 6), 24e9, "rtx3090"),
    "rtx4090": Card("an RTX 4090 that is played", 23.53, (8, 9), 24e9, "rtx4090"),
}


def process_memory() -> dict[str, int]:
    """Return this process's anonymous and pinned bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    found = {
        name: int(lines.get(key, "0").split()[0]) * 1024 for name, key in (("anon", "RssAnon"), ("shmem", "RssShmem"))
    }
    import torch

    stats = torch.cuda.host_memory_stats() if torch.cuda.is_available() and torch.cuda.is_initialized() else {}
    return {
        **found,
        "pinned": int(stats.get("allocated_bytes.current", 0)),
        "pinned_peak": int(stats.get("allocated_bytes.peak", 0)),
    }


class Player:
    def __init__(self, card: Card, folder: Path) -> None:
        import torch

        self.card, self.folder, self.torch = card, folder, torch
        self.file = folder / f"{os.getpid()}.json"
        self.most: dict[str, Any] = {"dots": []}
        self.own: Any = None  # what torch itself answers, before it is played
        self.slot, self.places = 0, None

    def install(self) -> None:
        torch, cuda, card = self.torch, self.torch.cuda, self.card
        if card.threads:
            cores = sorted(os.sched_getaffinity(0))[-card.threads :]
            os.sched_setaffinity(0, cores)
            torch.set_num_threads(card.threads)
        threading.Thread(target=self.watch, daemon=True).start()
        if not cuda.is_available():
            return
        self.own = (cuda.mem_get_info, cuda.get_per_process_memory_fraction, cuda.set_per_process_memory_fraction)
        self.fraction = 1.0
        capability = cuda.get_device_capability

        def played(device: Any = None) -> tuple[int, int]:
            """Answer nbtune; Triton and libraries must know what they compile for."""
            asks = sys._getframe(1).f_globals.get("__name__", "")
            return card.capability if asks.split(".")[0] in ("nbtune", "nbtune_kernels") else capability(device)

        cuda.get_device_capability = played
        cuda.get_device_name = lambda device=None: card.name
        cuda.is_bf16_supported = lambda *_, **__: card.capability >= (8, 0)
        cuda.mem_get_info = self.mem_get_info
        cuda.get_per_process_memory_fraction = lambda device=None: self.fraction
        cuda.set_per_process_memory_fraction = self.hold
        if card.capability < (8, 0):
            torch.backends.cuda.enable_flash_sdp(False)
            torch.backends.cuda.enable_cudnn_sdp(False)
            self.note_dots()
        for owner, name in ((torch.Tensor, "copy_"), (torch.Tensor, "to"), (torch.Tensor, "cuda")):
            setattr(owner, name, self.held(getattr(owner, name), name))
        lazily = cuda._lazy_init

        def began() -> None:
            first = not cuda.is_initialized()
            lazily()
            if first and cuda.is_initialized():
                self.hold(self.fraction)

        cuda._lazy_init = began

    # ------------------------------------------------------------ memory

    def others(self) -> int:
        """Return what other played processes that live hold of the card."""
        found = 0
        for file in self.folder.glob("*.json"):
            if file != self.file and Path(f"/proc/{file.stem}").exists():
                try:
                    told = json.loads(file.read_text())
                except (OSError, ValueError):
                    continue
                found += told.get("reserved", 0) + (CONTEXT if told.get("began") else 0)
        return found

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        total = int(self.card.gib * GIB)
        own = self.torch.cuda.memory_reserved() if self.torch.cuda.is_initialized() else 0
        return max(0, total - CONTEXT - own - self.others()), total

    def hold(self, fraction: float, device: Any = None) -> None:
        """Let torch's allocator have that share of the card that is played, and never what its context takes."""
        self.fraction = fraction
        total = self.card.gib * GIB
        real = self.own[0]()[1]
        self.own[2](min(fraction * total, total - CONTEXT) / real)

    def watch(self) -> None:
        cuda = self.torch.cuda
        while True:
            try:
                now = process_memory()
            except (OSError, RuntimeError, ValueError):
                now = {}
            both = now.get("anon", 0) + now.get("shmem", 0) + now.get("pinned", 0)
            if both > self.most.get("ram", 0):
                self.most |= {"ram": both, "ram_parts": now}
            began = cuda.is_available() and cuda.is_initialized()
            self.most |= {"began": bool(began), "pid": os.getpid(), "at": time.time(), "now": both}
            if began:
                self.most["reserved"] = cuda.memory_reserved()
                self.most["reserved_peak"] = max(self.most.get("reserved_peak", 0), cuda.max_memory_reserved())
            beside = self.file.with_suffix(".new")
            beside.write_text(json.dumps(self.most))
            beside.replace(self.file)
            time.sleep(0.05)

    # ------------------------------------------------------------ products and link

    def note_dots(self) -> None:
        """Remember which kernels with `tl.dot` are launched: on such a card they run without tensor cores."""
        from triton.runtime.jit import JITFunction

        run, seen, dots = JITFunction.run, set(), self.most["dots"]

        def noted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            made = run(kernel, *args, **kwargs)
            if id(kernel) not in seen:
                seen.add(id(kernel))
                if "tt.dot" in getattr(made, "asm", {}).get("ttir", ""):
                    dots.append(kernel.fn.__name__)
            return made

        JITFunction.run = noted

    def held(self, work: Any, name: str) -> Any:
        """Return `copy_`, `to` or `cuda` as a link as slow as the played one would let it end."""
        torch = self.torch

        def copied(this: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
            crosses = isinstance(source, torch.Tensor) and "cpu" in (this.device.type, source.device.type)
            if not crosses or not (this.is_cuda or source.is_cuda):
                return work(this, source, *args, **kwargs)
            place = self.enter(this if this.is_cuda else source, this.numel() * this.element_size(), this.is_cuda)
            made = work(this, source, *args, **kwargs)
            leave[(1,)](place)
            return made

        def sent(this: Any, *args: Any, **kwargs: Any) -> Any:
            made = work(this, *args, **kwargs)
            if this.device.type == "cpu" and made.is_cuda:
                leave[(1,)](self.enter(made, made.numel() * made.element_size(), True))
            return made

        from played_kernels import leave

        return copied if name == "copy_" else sent

    def enter(self, tensor: Any, size: int, goes_in: bool) -> Any:
        """Note on the card's clock when a copy that begins now may end; return where."""
        from played_kernels import enter

        torch = self.torch
        if self.places is None:
            self.places = torch.zeros((2, RING + 1, 2), dtype=torch.int64, device=tensor.device)
            torch.cuda.synchronize(tensor.device)
        self.slot = self.slot % RING + 1
        side = self.places[int(goes_in)]
        enter[(1,)](side[0], side[self.slot], int(size / self.card.link * 1e9))
        return side[self.slot]


def installed() -> Player | None:
    name, folder = os.environ.get("PLAYED"), os.environ.get("PLAYED_AT")
    if not name or not folder:
        return None
    player = Player(CARDS[name], Path(folder))
    player.install()
    return player


PLAYER = installed()
