"""An 8B-shape export through a GPU: random bf16 weights and a LoRA adapter on the RAM disk, q4_k_m beside them.

    python -m tests.gpu.bench_export [SHAPE] [TYPE] [--ram /dev/shm] [--profile]

Merging, encoding and writing are timed together, twice: the first call pays for CUDA's start. `--profile` says which
calls of this process took longest in the second one.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import torch

from tests.export.bench_export import SHAPES, export_once, make


def main() -> None:
    """Make, export twice, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="8b", choices=SHAPES)
    parser.add_argument("type", nargs="?", default="q4_k_m")
    parser.add_argument("--ram", default="/dev/shm")
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    with tempfile.TemporaryDirectory(dir=asked.ram) as temporary:
        folder, began = Path(temporary), time.perf_counter()
        base, adapter = make(folder, asked.shape, device)
        print(f"made in {time.perf_counter() - began:.1f} s", flush=True)
        for turn in ("first", "second"):
            profile = cProfile.Profile() if asked.profile and turn == "second" else None
            if profile:
                profile.enable()
            cost = export_once(base, adapter, folder / "out", asked.type, device)
            if profile:
                profile.disable()
                pstats.Stats(profile).sort_stats("tottime").print_stats(14)
            print(
                f"{asked.shape} {asked.type} on {name}, {turn}: {cost.seconds:.1f} s, file {cost.bytes / 1e9:.2f} GB, "
                f"peak memory {cost.memory / 2**30:.2f} GiB",
                flush=True,
            )
        if device == "cuda":
            print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
