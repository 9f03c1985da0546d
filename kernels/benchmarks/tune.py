"""Tries launch parameters on the GPU that is here and prints the best as entries of nbtune_kernels/tables.py.

    python kernels/benchmarks/tune.py [--only lora_xa,grouped_tn] [--seconds 240] [--json out.jsonl] [--write]

Candidates are compiled by several processes first, then timed by one alone. Each is timed by all rows of its op
together, so that one entry serves every width. A gain below 3 % is noise and keeps the present entry. `--write` keeps
the winners for this machine (tables.own_file), for cards that the table does not list.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import re
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

OWN = os.environ.get("NBTUNE_KERNEL_TABLE")
os.environ["NBTUNE_KERNEL_TABLE"] = ""  # what was measured here before must not hide the candidates

import torch  # noqa: E402
from nbtune_kernels import tables  # noqa: E402

from benchmarks.measure import LLAMA_8B, Row, Timer, compile_elsewhere, copy_bandwidth  # noqa: E402

# op in the table: (benchmark module, its rows, parameters, values to try: each combination of the groups)
GRIDS: dict[str, tuple[str, str, list[dict[str, list]]]] = {
    "lora_xa": (
        "lora", "lora_xa.*",
        [{"block_t": [16, 32, 64]}, {"block_k": [64, 128, 256]}, {"stages": [3, 5]}, {"warps": [4, 8]}],
    ),
    "lora_dxa": (
        "lora", "lora_dxa.*", [{"block_t": [16, 32, 64]}, {"block_k": [64, 128, 256]}, {"stages": [3, 5]}],
    ),
    "grouped_tn": (
        "lora", "lora_grads.*",
        [{"block_t": [32, 64, 128]}, {"block_n": [64, 128, 256]}, {"stages": [3, 4]}, {"programs_per_sm": [1, 2, 4]}],
    ),
    "act_mul": ("activation", "swiglu forward", [{"block": [1024, 2048, 4096]}, {"warps": [4, 8]}]),
    "act_mul_backward": ("activation", "swiglu backward.*", [{"block": [512, 1024, 2048]}, {"warps": [2, 4, 8]}]),
    "cross_entropy": (
        "linear_cross_entropy", "cross_entropy rows, walked",
        [
            {"block": [4096, 16384, 16384, 32768, 32768, 65536], "warps": [8, 16, 32, 16, 32, 32]},
            {"stages": [1, 3]},
            {"keep": ["", "evict_last", "", "evict_last"], "drop": ["", "", "evict_first", "evict_first"]},
        ],
    ),
    "cross_entropy_shared": (  # 0: a row is never shared
        "linear_cross_entropy", "cross_entropy rows",
        [{"block": [0, 4096, 8192, 8192, 16384, 16384, 32768], "warps": [1, 1, 2, 4, 4, 8, 8]}],
    ),
    "cross_entropy_stats": (
        "linear_cross_entropy", "cross_entropy rows, no grad",
        [{"block": [2048, 4096, 8192, 16384]}, {"warps": [4, 8, 16]}, {"stages": [1, 3]}],
    ),
    "rms_norm": (
        "rms_norm", "(add_)?rms_norm( of heads)?",
        [{"per_warp": [512, 1024, 2048]}],
    ),
    "rms_norm_backward": (
        "rms_norm", "rms_norm_backward.*",
        [
            {"per_warp": [512, 1024]},
            {"programs_per_sm": [1, 1, 1, 2, 2, 2, 3, 4], "stages": [4, 6, 8, 3, 4, 5, 3, 3]},
        ],
    ),
    "layer_norm": ("layer_norm", "layer_norm", [{"per_warp": [512, 1024, 2048]}]),
    "layer_norm_backward": (
        "layer_norm", "layer_norm_backward.*",
        [
            {"per_warp": [512, 1024]},
            {"programs_per_sm": [1, 1, 1, 2, 2, 2, 3, 4], "stages": [4, 6, 8, 3, 4, 5, 3, 3]},
        ],
    ),
    "rope": ("rope", "rope.*", [{"pairs": [256, 512, 1024, 2048]}, {"warps": [1, 2, 4, 8]}]),
    "dropout": ("dropout", "dropout", [{"block": [128, 256, 512]}, {"warps": [1, 2, 4, 8]}]),
    "embedding": ("dropout", "embedding", [{"warps": [1, 2, 4, 8]}, {"rows": [1, 2, 4]}]),
}  # fmt: skip


def candidates(op: str) -> list[dict]:
    """All combinations: one value of each group of parameters, which are read in step within a group."""
    groups = [
        [dict(zip(group, values, strict=True)) for values in zip(*group.values(), strict=True)]
        for group in GRIDS[op][2]
    ]
    return [{k: v for part in parts for k, v in part.items()} for parts in itertools.product(*groups)]


def measured_rows(op: str) -> list[Row]:
    """The benchmark's rows that decide about an op."""
    module, pattern, _ = GRIDS[op]
    rows = importlib.import_module(f"benchmarks.{module}").rows(LLAMA_8B)
    return [row for row in rows if re.fullmatch(pattern, row.name)]


def compile_share(ops: list[str], share: int, shares: int) -> None:
    """Run every `shares`-th candidate once."""
    for op in ops:
        rows, present = measured_rows(op), tables.TABLE.get((op, capability()))
        for entry in candidates(op)[share::shares]:
            tables.set_entry(op, capability(), entry)
            for row in rows:
                with contextlib.suppress(Exception):  # what does not compile is said when it is timed
                    row.call()
        tables.set_entry(op, capability(), present)


def winner(results: list[dict]) -> dict | None:
    """The best of `[present, candidates...]`, unless the present entry is as good."""
    if len(results) < 2:
        return None
    best = min(results[1:], key=lambda r: r["ms"])
    return best if best["ms"] < 0.97 * results[0]["ms"] else None


def keep(winners: list[dict]) -> None:
    """Write them into this machine's own table."""
    if OWN is None:
        del os.environ["NBTUNE_KERNEL_TABLE"]
    else:
        os.environ["NBTUNE_KERNEL_TABLE"] = OWN
    path = tables.own_file()
    if path is None or not winners:
        return
    table = json.loads(path.read_text()) if path.exists() else {}
    table.setdefault(str(capability()), {}).update({w["op"]: w["entry"] for w in winners})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n")
    print(f"# kept in {path}")


def tune(op: str, timer: Timer, copy: float, until: float) -> list[dict]:
    """Print one line a candidate that ran, and the entry that won."""
    rows, present = measured_rows(op), tables.TABLE.get((op, capability()))
    results: list[dict] = []
    for entry in [None, *candidates(op)]:
        if time.monotonic() > until:
            print(f"# {op}: out of time after {len(results)} candidates")
            break
        tables.set_entry(op, capability(), entry or present)
        try:
            seconds = [timer(row.call) for row in rows]
        except Exception as reason:  # noqa: BLE001 (a candidate that does not fit the card is no candidate)
            print(f"#   {op} {entry}: {type(reason).__name__}: {str(reason).splitlines()[0][:80]}")
            continue
        shares = {row.name: row.moved / s / copy for row, s in zip(rows, seconds, strict=True)}
        results.append({"op": op, "entry": entry or {}, "ms": 1e3 * sum(seconds), "shares": shares})
    tables.set_entry(op, capability(), present)
    for result in sorted(results[1:], key=lambda r: r["ms"])[:4] + results[:1]:
        shares = " ".join(f"{share:.0%}" for share in result["shares"].values())
        print(f"#   {op} {result['entry'] or 'present'}: {result['ms']:.4f} ms, {shares}", flush=True)
    if best := winner(results):
        gain = results[0]["ms"] / best["ms"]
        print(f'    ("{op}", {capability()}): {best["entry"]},  # {gain:.2f} times as fast as before')
    return results


def capability() -> int:
    """Of the GPU that is here."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def main() -> None:
    """Tune what is asked for, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(GRIDS))
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--json", default=None)
    parser.add_argument("--write", action="store_true", help="keep the winners for this machine")
    parser.add_argument("--processes", type=int, default=12, help="that compile before anything is timed")
    parser.add_argument("--share", type=int, default=None, help="compile that share of the candidates, time nothing")
    args = parser.parse_args()
    ops = args.only.split(",")
    if args.share is not None:
        return compile_share(ops, args.share, args.processes)
    started = time.monotonic()
    common = ["--only", args.only, "--processes", str(args.processes), "--share"]
    compile_elsewhere(__file__, [[*common, str(i)] for i in range(args.processes)])
    timer = Timer(repeats=9)
    copy = copy_bandwidth(timer)
    print(
        f"# {torch.cuda.get_device_name()}, copy {copy / 1e12:.2f} TB/s; compiled in {time.monotonic() - started:.0f} s"
    )
    results = [tune(op, timer, copy, started + args.seconds) for op in ops]
    if args.json:
        Path(args.json).write_text("".join(json.dumps(r) + "\n" for rows in results for r in rows))
    if args.write:
        keep([best for rows in results if (best := winner(rows))])
    return None


if __name__ == "__main__":
    main()
