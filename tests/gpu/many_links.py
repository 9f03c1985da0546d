"""What links between GPUs give: the row `links` of `bench_many.py`."""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from typing import Any


def links(args: argparse.Namespace, ranks: Any) -> dict[str, Any]:
    """Seconds of what a step sends: sums of an 8B LoRA's gradients and of a whole embedding's, a layer's weights put
    together, its gradients summed and parted; and of the few numbers that the hosts agree on."""
    import torch
    import torch.distributed as dist

    from nbtune import device as machine
    from nbtune.device.streams import synchronize

    device, count = machine.pick("auto"), args.gpus
    size = 1 if device.type == "cuda" else 64  # a rehearsal's are small
    layer = 218_112_000 // size // count * count

    def took(work: Any, times: int = 12) -> float:
        seconds = []
        for _ in range(times):
            dist.barrier()
            synchronize(device)
            began = time.perf_counter()
            work()
            synchronize(device)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[3:])

    told: dict[str, Any] = {"peak_gib": 0.0}
    for name, numbers in (("norm", 1), ("lora", 41_943_040 // size), ("embedding", 525_336_576 // size)):
        tensor = torch.zeros(numbers, device=device)
        seconds = took(lambda tensor=tensor: dist.all_reduce(tensor))
        told[f"sum_{name}_s"] = round(seconds, 6)
        told[f"sum_{name}_gb_s"] = round(2 * (count - 1) / count * 4 * numbers / seconds / 1e9, 1)
        del tensor
    part, whole = (torch.zeros(n, dtype=torch.bfloat16, device=device) for n in (layer // count, layer))
    seconds = took(lambda: dist.all_gather_into_tensor(whole, part))
    told |= {"gather_s": round(seconds, 6), "gather_gb_s": round((count - 1) / count * 2 * layer / seconds / 1e9, 1)}
    if device.type == "cuda":
        wide_part, wide_whole = (torch.zeros(n, device=device) for n in (layer // count, layer))
        seconds = took(lambda: dist.reduce_scatter_tensor(wide_part, wide_whole))
        rate = (count - 1) / count * 4 * layer / seconds / 1e9
        told |= {"scatter_s": round(seconds, 6), "scatter_gb_s": round(rate, 1)}
    hosts = [time.perf_counter()]
    for _ in range(40):
        ranks.gather([1.0, 2.0, 3.0, 0.0])
        hosts.append(time.perf_counter())
    told["agree_s"] = round(statistics.median(b - a for a, b in pairwise(hosts[5:])), 6)
    return told
