"""Kernels that are compiled where they would be launched, many at once, and never launched.

For a process beside a run (`NBTUNE_COMPILE_AHEAD=1`): it does what the run is going to do, on tensors whose contents
nobody looks at, and leaves the kernels in Triton's cache. Compiling is mostly waiting for ptxas and a C compiler, so
that threads do several kernels in the time of one.
"""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from triton.runtime.jit import JITFunction

_THREADS = 8
_POOL = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="nbtune-compile")
_LOCK = threading.Lock()
_ORDERED: dict[Any, "Future[None]"] = {}


class CompileOnly(JITFunction):  # type: ignore[misc]
    """A kernel whose launches only order its compilation."""

    def run(self, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Order the variant that these arguments need, unless it was ordered before."""
        fixed = {p.num for p in self.params if p.is_constexpr}
        given = tuple(arg if i in fixed else _kind(arg) for i, arg in enumerate(args))
        varying = {p.name for p in self.params if not p.is_constexpr}
        by_name = tuple((k, _kind(v) if k in varying else v) for k, v in sorted(kwargs.items()))
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        with _LOCK:
            if (self, given, by_name) not in _ORDERED:
                job = _POOL.submit(self._compile, device, args, {"grid": grid, "warmup": True, **kwargs})
                _ORDERED[self, given, by_name] = job

    def _compile(self, device: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if device is not None:
            torch.cuda.set_device(device)
        compiled = JITFunction.run(self, *args, **kwargs)
        if device is not None:
            compiled.run  # noqa: B018 — asking for it builds the C code that launches it


def _kind(value: Any) -> Any:
    """Return what Triton looks at of an argument."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int) and not isinstance(value, bool):
        return int, value == 1, value % 16 == 0, value.bit_length() > 31
    return type(value) if isinstance(value, float) else value


def finish() -> tuple[int, list[BaseException]]:
    """Wait for all that was ordered; return how many variants there are, and what went wrong with some."""
    errors = [job.exception() for job in list(_ORDERED.values())]
    return len(errors), [e for e in errors if e is not None]
