"""What a GPU did during some steps of `bench_many.py wide --profile`: seconds of each kernel, and of each stream."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any


def profiled(emit: Callable[[Any], None], device: Any, first: int, count: int) -> Callable[[Any], None]:
    """Return `emit`, which profiles so many steps after step `first`, and prints what they did."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from nbtune import events
    from nbtune.device.streams import synchronize

    kinds = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    prof = profile(activities=kinds)
    began = 0.0

    def told(event: Any) -> None:
        nonlocal began
        emit(event)
        if not isinstance(event, events.Step):
            return
        if event.step == first:
            synchronize(device)
            prof.start()
            began = time.perf_counter()
        elif event.step == first + count:
            synchronize(device)
            took = time.perf_counter() - began
            prof.stop()
            if os.environ.get("RANK", "0") == "0":
                work = [e for e in prof.events() if e.device_type == torch.autograd.DeviceType.CUDA]
                show(work or prof.events(), took, count)

    return told


def show(work: Iterable[Any], took: float, steps: int) -> None:
    """Print milliseconds a step: each stream's, and the kernels that take most of each."""
    streams: dict[Any, list[Any]] = defaultdict(list)
    for event in work:
        streams[event.device_resource_id].append(event)
    print(f"{steps} steps, {took / steps * 1e3:.1f} ms each", file=sys.stderr)
    for stream, events in sorted(streams.items(), key=lambda one: -len(one[1]))[:6]:
        spans = sorted((e.time_range.start, e.time_range.end) for e in events)
        busy, idle, until = 0.0, 0.0, spans[0][0]
        for start, end in spans:
            idle += max(0.0, start - until)
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
        print(f"stream {stream}: busy {busy / steps / 1e3:.1f}, between {idle / steps / 1e3:.1f} ms", file=sys.stderr)
        by_name: dict[str, list[float]] = defaultdict(list)
        for e in events:
            by_name[e.name].append(e.time_range.end - e.time_range.start)
        for name, times in sorted(by_name.items(), key=lambda one: -sum(one[1]))[:25]:
            told = f"{sum(times) / steps / 1e3:9.2f} ms {len(times) / steps:7.1f} x {sum(times) / len(times):8.0f} us"
            print(f"  {told}  {name[:110]}", file=sys.stderr)
    sys.stderr.flush()
