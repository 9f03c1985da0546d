"""How a kernel is timed here: CUDA graph replays between events, the L2 cache flushed before each, the median taken.

The cache is flushed by *reading* 256 MiB. Writing them would leave tens of megabytes of changed lines, which the kernel
that is timed would have to send to memory besides its own.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]


@dataclass
class Row:
    """One line of the table.

    call: what is timed. moved: bytes it must read and write at least. check: relative error against fp64 on fresh
    inputs. others: the same work by somebody else, by name. floor: work that it cannot do without, whose time replaces
    the copy's. uncaptured: which of the others wait for the GPU themselves, and so cannot be in a graph.
    """

    name: str
    shape: str
    call: Call
    moved: int = 0
    check: Callable[[], float] | None = None
    others: dict[str, Call] = field(default_factory=dict)
    floor: Call | None = None
    uncaptured: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """Sizes of one model at so many tokens (default: Llama 3.1 8B, 4 x 2048)."""

    tokens: int = 8192
    hidden: int = 4096
    inner: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 128256
    rank: int = 16


LLAMA_8B = Shape()
LLAMA_1B = Shape(hidden=2048, inner=8192, heads=32, kv_heads=8, head_dim=64)


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    """Normal numbers on the GPU: never zeros, which hide errors and run faster."""
    return torch.randn(shape, device="cuda", dtype=torch.float32).mul_(scale).to(dtype)


def error(got: Tensor, truth: Tensor) -> float:
    """`|got - truth| / |truth|` in fp64; NaN and infinity count as infinite."""
    if not torch.isfinite(got).all():
        return float("inf")
    return float((got.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30))


class Timer:
    """Times calls on the current GPU."""

    def __init__(self, repeats: int = 20, dirty: bool = False):
        self.repeats, self.dirty = repeats, dirty
        self._flush = torch.randint(0, 9, (2**26,), dtype=torch.int32, device="cuda")
        self._copies: dict[int, float] = {}

    def _flush_cache(self) -> None:
        if self.dirty:
            self._flush.zero_()
        else:
            torch.max(self._flush)

    def __call__(self, call: Call, captured: bool = True) -> float:
        """Median seconds of one call."""
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        replay = self._graph(call) if captured else call
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.repeats)]
        for start, end in events:
            self._flush_cache()
            start.record()
            replay()
            end.record()
        torch.cuda.synchronize()
        return sorted(start.elapsed_time(end) for start, end in events)[self.repeats // 2] / 1e3

    def copy(self, moved: int) -> float:
        """Median seconds of a copy that reads and writes so many bytes in all: what a launch of that size can reach."""
        if moved not in self._copies:
            x = torch.randint(0, 127, (moved // 8,), dtype=torch.int32, device="cuda")
            y = torch.empty_like(x)
            ways = (self(lambda: y.copy_(x), captured=False), self(lambda: torch.bitwise_not(x, out=y)))
            self._copies[moved] = min(ways)  # a captured copy_ goes by a slower way than either
        return self._copies[moved]

    @staticmethod
    def _graph(call: Call) -> Call:
        """The call captured once, so that host time stays out."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()
        graph.kept = kept  # results live as long as the graph that writes them
        return graph.replay


def copy_bandwidth(timer: Timer) -> float:
    """Bytes a second of a large device-to-device copy, read and written counted."""
    return 2**30 / timer.copy(2**30)


def compile_elsewhere(script: str, shares: list[list[str]]) -> None:
    """Run `script` with each list of arguments, all at once: Triton's cache is warm for what is timed after it."""
    runs = [subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.DEVNULL) for arguments in shares]
    for run in runs:
        run.wait()


def prepared(setup: Callable[[], Any], call: Callable[..., Any]) -> Call:
    """`call(*setup())` with the setup done at the first call: what is somebody else's must not break a table here."""
    state: list[Any] = []

    def run() -> Any:
        if not state:
            state.append(setup())
        return call(*state[0])

    return run


def liger(module: str) -> Any:
    """`liger_kernel.ops.<module>`, or None where Liger is not installed."""
    try:
        return importlib.import_module(f"liger_kernel.ops.{module}")
    except ImportError:
        return None
