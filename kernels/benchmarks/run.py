"""Checks and times every kernel on the GPU that is here, and prints one table.

    python kernels/benchmarks/run.py [--shape 8b|1b] [--only rms_norm,lora] [--seconds 85] [--json out.jsonl]

Numbers first: each op's bf16 results against fp64. Then times, as in measure.py, with the share of a large copy's
bandwidth (or of the matrix products that the op cannot do without), the share of a copy that moves the same bytes
(small launches never reach the large one), and Liger's time where it is installed. `--dirty` flushes by writing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402

from benchmarks.measure import LLAMA_1B, LLAMA_8B, Row, Timer, compile_elsewhere, copy_bandwidth  # noqa: E402

OPS = ("rms_norm", "rope", "activation", "lora", "linear_cross_entropy", "adamw", "layer_norm", "dropout")
LIMIT = 1.2e-2  # bf16 operands


def guarded(label: str, call):
    """The result, or None with the reason on stderr: one broken row must not hide the others."""
    try:
        return call()
    except Exception as reason:  # noqa: BLE001 (a benchmark reports whatever went wrong and goes on)
        print(f"FAILED {label}: {type(reason).__name__}: {str(reason)[:300]}", file=sys.stderr)
        traceback.print_exc(limit=4, file=sys.stderr)
        return None


def measure(row: Row, timer: Timer, copy: float) -> dict:
    """One row as a record."""
    record: dict = {"kernel": row.name, "shape": row.shape}
    if row.check:
        record["error"] = guarded(f"{row.name} check", row.check)
        record["right"] = record["error"] is not None and record["error"] <= LIMIT
    seconds = guarded(row.name, lambda: timer(row.call))
    if seconds is None:
        return record | {"right": False}
    record["ms"] = seconds * 1e3
    if row.moved:
        record["gb_s"] = row.moved / seconds / 1e9
        record["share"] = row.moved / seconds / copy
        record["of_same_copy"] = timer.copy(row.moved) / seconds
    if row.floor:
        floor = guarded(f"{row.name} floor", lambda: timer(row.floor))
        record["share"] = floor / seconds if floor else None
    for name, other in row.others.items():
        theirs = guarded(f"{row.name} by {name}", lambda other=other, c=name not in row.uncaptured: timer(other, c))
        record[name] = theirs * 1e3 if theirs else None
    return record


def line(record: dict) -> str:
    """A record as a line of the table."""

    def number(key: str, form: str) -> str:
        return format(record[key], form) if record.get(key) is not None else "-"

    others = " ".join(f"{k} {record[k]:.3f}" for k in ("liger", "cublas", "torch", "torch fused") if record.get(k))
    wrong = "" if record.get("right", True) else "  WRONG"
    share, same = (f"{record[key]:.0%}" if record.get(key) else "-" for key in ("share", "of_same_copy"))
    return (
        f"{record['kernel']:<34}{record['shape']:<26}{number('ms', '8.4f'):>8}{number('gb_s', '7.0f'):>8}{share:>6}"
        f"{same:>6}  {number('error', '.1e'):>7}  {others}{wrong}"
    )


def main() -> int:
    """Measure, print, and say by the exit code whether every result was right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("8b", "1b"), default="8b")
    parser.add_argument("--only", default=",".join(OPS))
    parser.add_argument("--seconds", type=float, default=85)
    parser.add_argument("--json", default=None)
    parser.add_argument("--dirty", action="store_true", help="flush the cache by writing")
    parser.add_argument("--compile", action="store_true", help="run each row once and time nothing")
    args = parser.parse_args()
    shape, started = {"8b": LLAMA_8B, "1b": LLAMA_1B}[args.shape], time.monotonic()
    if args.compile:
        for op in args.only.split(","):
            for row in importlib.import_module(f"benchmarks.{op}").rows(shape):
                for call in (row.check, row.call, *row.others.values()):
                    guarded(row.name, call) if call else None
        return 0
    compile_elsewhere(__file__, [["--shape", args.shape, "--only", op, "--compile"] for op in args.only.split(",")])
    print(f"compiled after {time.monotonic() - started:.0f} s", file=sys.stderr)
    timer = Timer(dirty=args.dirty)
    copy = copy_bandwidth(timer)
    records, skipped = [], []
    for op in args.only.split(","):
        module = guarded(op, lambda op=op: importlib.import_module(f"benchmarks.{op}"))
        made = iter(module.rows(shape)) if module else iter(())
        while row := guarded(f"{op} rows", lambda made=made: next(made, None)):
            if time.monotonic() - started > args.seconds:
                skipped.append(row.name)
                continue
            records.append(measure(row, timer, copy))
            print(f"{time.monotonic() - started:5.1f} s  {line(records[-1])}", file=sys.stderr, flush=True)
    if args.json:
        Path(args.json).write_text("".join(json.dumps(r) + "\n" for r in records))
    name = torch.cuda.get_device_name()
    print(
        f"\n{name}, torch {torch.__version__}, copy {copy / 1e12:.2f} TB/s; {time.monotonic() - started:.0f} s in all"
    )
    print(f"{'kernel':<34}{'shape':<26}{'ms':>8}{'GB/s':>8}{'share':>6}{'same':>6}  {'error':>7}  others, ms")
    print("\n".join(line(r) for r in records))
    if skipped:
        print(f"no time for: {', '.join(skipped)}")
    return 0 if all(r.get("right", True) for r in records) else 1


if __name__ == "__main__":
    sys.exit(main())
