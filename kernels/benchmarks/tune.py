"""Tries launch parameters on the GPU that is here and prints the best as entries of nbtune_kernels/tables.py.

    python kernels/benchmarks/tune.py [--only lora_xa,grouped_tn] [--seconds 240]

Each candidate is timed by all rows of its op together, so that one entry serves every width. A gain below 3 % is noise
and keeps the present entry.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from nbtune_kernels import tables  # noqa: E402

from benchmarks.measure import LLAMA_8B, Timer, copy_bandwidth  # noqa: E402

GRIDS: dict[str, tuple[str, str, dict[str, list]]] = {
    # op in the table: (benchmark module, prefix of its rows, values to try)
    "lora_xa": ("lora", "lora_xa", {"block_t": [32, 64, 128], "block_k": [64, 128, 256], "stages": [3, 4, 6]}),
    "lora_dxa": ("lora", "lora_dxa", {"block_t": [32, 64, 128], "block_k": [64, 128, 256], "stages": [3, 4, 6]}),
    "grouped_tn": (
        "lora", "lora_grads",
        {"block_t": [32, 64, 128], "block_n": [128, 256], "stages": [3, 4, 6], "programs_per_sm": [2, 4]},
    ),
    "act_mul": ("activation", "swiglu forward", {"block": [1024, 2048, 4096], "warps": [4, 8]}),
    "act_mul_backward": ("activation", "swiglu backward", {"block": [512, 1024, 2048], "warps": [2, 4, 8]}),
    "cross_entropy": ("linear_cross_entropy", "cross_entropy rows", {"block": [2048, 4096, 8192], "warps": [4, 8, 16]}),
    "rms_norm": ("rms_norm", "rms_norm", {"per_warp": [512, 1024, 2048]}),
    "rms_norm_backward": ("rms_norm", "rms_norm_backward", {"per_warp": [256, 512, 1024], "programs_per_sm": [4]}),
    "rope": ("rope", "rope in place", {"warps": [2, 4, 8]}),
    "adamw": ("adamw", "adamw + bf16", {"block": [1024, 2048]}),
    "dropout": ("dropout", "dropout", {"block": [256, 512, 1024], "warps": [2, 4, 8]}),
}  # fmt: skip


def tune(op: str, timer: Timer, copy: float, capability: int, until: float) -> None:
    """Print one line a candidate that ran, and the entry that won."""
    module, prefix, grid = GRIDS[op]
    rows = []
    for row in importlib.import_module(f"benchmarks.{module}").rows(LLAMA_8B):
        if row.name.startswith(prefix) and not (op == "rms_norm" and "backward" in row.name):
            rows.append(row)
    present = tables.TABLE.get((op, capability))
    results: list[tuple[float, dict]] = []
    for values in [None, *itertools.product(*grid.values())]:
        entry = None if values is None else dict(zip(grid, values, strict=True))
        if time.monotonic() > until:
            print(f"# {op}: out of time after {len(results)} candidates")
            break
        tables.set_entry(op, capability, entry or present)
        try:
            seconds = [timer(row.call) for row in rows]
        except Exception as reason:  # noqa: BLE001 (a candidate that does not fit the card is no candidate)
            print(f"#   {op} {entry}: {type(reason).__name__}: {str(reason).splitlines()[0][:80]}")
            continue
        shares = " ".join(f"{row.moved / s / copy:.0%}" for row, s in zip(rows, seconds, strict=True))
        results.append((sum(seconds), entry or {}))
        print(f"#   {op} {entry or 'present'}: {1e3 * sum(seconds):.3f} ms, {shares}", flush=True)
    tables.set_entry(op, capability, present)
    if results:
        best, entry = min(results, key=lambda r: r[0])
        if entry and best < 0.97 * results[0][0]:
            print(f'    ("{op}", {capability}): {entry},  # {results[0][0] / best:.2f} times as fast as before')


def main() -> None:
    """Tune what is asked for, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(GRIDS))
    parser.add_argument("--seconds", type=float, default=240)
    args = parser.parse_args()
    until, timer = time.monotonic() + args.seconds, Timer(repeats=9)
    copy = copy_bandwidth(timer)
    major, minor = torch.cuda.get_device_capability()
    print(f"# {torch.cuda.get_device_name()}, copy {copy / 1e12:.2f} TB/s")
    for op in args.only.split(","):
        tune(op, timer, copy, 10 * major + minor, until)


if __name__ == "__main__":
    main()
