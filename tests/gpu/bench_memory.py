"""What a card's memory is asked for that is no single step: runs in a row, another program, several processes.

    python tests/gpu/bench_memory.py ten SHAPE          ten runs in one process; --here: the engine in it, too
    python tests/gpu/bench_memory.py forced SHAPE       another process takes the card's memory in the middle of a run
    python tests/gpu/bench_memory.py four SHAPE --cap 16      four processes started within a second, each capped
    python tests/gpu/bench_memory.py capped SHAPE --cap 78 --plain      one, told nothing but model, data and steps

SHAPE is a model's folder (`tests/gpu/bench_predictions.py make`). One JSON line a figure. On a machine without a GPU
the same is done on the CPU, where nothing is short: to see that the script works.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
BEGAN = time.time()
GIB = 2**30


def say(**figures: object) -> None:
    print(json.dumps({"after_s": round(time.time() - BEGAN, 1), **figures}), flush=True)


def texts(length: int, count: int) -> list[dict[str, str]]:
    chance = random.Random(length)
    return [{"text": " ".join(chance.choices(WORDS, k=length - 8))} for _ in range(count)]


def fields(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    usual = {"model": str(args.shape), "train_on": "all", "learning_rate": 1e-4, "packing": False, "order": "given"}
    usual |= {"eval": {"split": 0, "every": 10**6}, "checkpoint": {"keep": 1}}
    return {**usual, "sequence_len": args.length, "batch_size": args.rows, "steps": args.steps, **more}


def taken() -> int:
    """Return the bytes of the card that are in use, by whomever."""
    import torch

    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def beside(args: argparse.Namespace) -> Any:
    """Work while nothing is timed, where `bench_predictions.py` times other runs."""
    from tests.gpu.bench_predictions import loading

    return loading(args.marks) if args.marks else contextlib.nullcontext()


def ten(args: argparse.Namespace, runs: Path) -> None:
    import torch

    import nbtune
    from nbtune.engine.engine import execute

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")  # this process's own context
        torch.cuda.empty_cache()
    start = taken()
    data = texts(args.length, args.rows * args.steps)
    for number in range(args.runs):
        began = time.time()
        spec = fields(args, data=data)
        with beside(args):
            if args.here:  # a folder that nobody has started, and the engine called on it
                how: dict[str, Any] = {"slurm": "partition=here", "send": False, "name": f"r{number}"}
                folder = nbtune.submit(spec, **how, runs_dir=runs).folder
                ended: str = execute(folder)
            else:
                run = nbtune.finetune(spec, name=f"r{number}", runs_dir=runs).wait()
                ended, _ = run.state, run.free()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        held = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if torch.cuda.is_available() else (0, 0)
        say(ten=number, here=args.here, ended=ended, took_s=round(time.time() - began, 1),
            over_start_mib=round((taken() - start) / 2**20, 1), allocated_mib=round(held[0] / 2**20, 1),
            reserved_mib=round(held[1] / 2**20, 1))  # fmt: skip
    if torch.cuda.is_available():  # what is left of whose?
        say(segments=[(one["total_size"] >> 20, one["allocated_size"] >> 20) for one in torch.cuda.memory_snapshot()])
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        say(without_cublas_mib=round((taken() - start) / 2**20, 1), allocated_mib=torch.cuda.memory_allocated() >> 20,
            reserved_mib=torch.cuda.memory_reserved() >> 20)  # fmt: skip


def followed(args: argparse.Namespace, runs: Path, name: str, hog: Any = None) -> dict[str, Any]:
    """Train short rows and then long ones; between them `hog` comes."""
    import nbtune
    from nbtune import events

    half = args.steps // 2
    data = texts(args.length // 4, args.rows * half) + texts(args.length, args.rows * (args.steps - half))
    run = nbtune.finetune(fields(args, data=data), name=name, runs_dir=runs)
    while run.alive and not any(isinstance(e, events.Step) and e.step >= 3 for e in run.events()):
        time.sleep(0.02)
    if hog is not None:
        run.pause()
        while run.alive and not any(isinstance(e, events.State) and e.state == "paused" for e in run.events()):
            time.sleep(0.05)
        hog()
        run.unpause()
    try:
        run.wait()
    except Exception as error:  # noqa: BLE001 — said below
        say(name=name, error=str(error)[:400])
    steps = [e for e in run.events() if isinstance(e, events.Step)]
    plan = run.plan
    assert plan is not None
    before = next((e.step for e in run.events() if isinstance(e, events.State) and e.state == "paused"), None)
    warned = [e.message for e in run.events() if isinstance(e, events.Warning) and "memory" in e.message]
    kept = [e.step for e in run.events() if isinstance(e, events.Checkpoint)]
    found = {
        "state": run.state, "paused_after": before, "half": half, "micro": plan.micro_batch_size,
        "accumulated": plan.gradient_accumulation_steps, "activations": plan.activations,
        "planned_gib": round(plan.peak_bytes / GIB, 2), "checkpoints": kept,
        "tokens": [e.tokens for e in steps], "losses": [e.loss for e in steps], "warned": warned,
        "reserved_gib": [round(e.memory_reserved / GIB, 2) for e in steps],
        "seconds": [round(e.seconds, 3) for e in steps],
    }  # fmt: skip
    say(forced=name, **found)
    return found


def forced(args: argparse.Namespace, runs: Path) -> None:
    piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    code = f"import sys; sys.argv=['']; from tests.gpu.bench_memory import hold; hold({args.leave})"
    told = ["--length", args.length, "--rows", args.rows, "--steps", args.steps]
    other = subprocess.Popen([sys.executable, "-c", code], **piped)
    beside = subprocess.Popen([sys.executable, __file__, "calm", args.shape, *map(str, told)], **piped)
    calm: dict[str, Any] = {}

    def hog() -> None:
        lines = beside.communicate()[0].splitlines()  # it has ended, and holds nothing any more
        print("\n".join(lines), flush=True)
        calm.update(next(json.loads(line) for line in lines if '"calm"' in line))
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write("now\n")
        other.stdin.flush()
        say(hog=other.stdout.readline().strip())

    try:
        short = followed(args, runs, "short", hog)
    finally:
        for process in (other, beside):
            process.kill()
            process.wait()
    apart = [abs(a - b) for a, b in zip(calm["losses"], short["losses"], strict=False)]
    say(compared=True, steps=[len(calm["losses"]), len(short["losses"])], same_tokens=calm["tokens"] == short["tokens"],
        apart=[round(x, 6) for x in apart], most=round(max(apart, default=0.0), 6),
        rows=[one["micro"] * one["accumulated"] for one in (calm, short)])  # fmt: skip


def hold(leave: float) -> None:
    """When told, take all of the card's memory but so many GiB, say what is left, and hold it until the input ends."""
    import torch

    held = []
    sys.stdin.readline()
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
        while (spare := torch.cuda.mem_get_info()[0] - leave * GIB) > 2**26:
            held.append(torch.empty(int(min(spare, 8 * GIB)), dtype=torch.uint8, device="cuda"))
        print(f"{torch.cuda.mem_get_info()[0] / GIB:.2f} GiB left", flush=True)
    else:
        print("no card", flush=True)
    sys.stdin.read()


def capped(args: argparse.Namespace, runs: Path) -> None:
    import nbtune
    from nbtune import events

    began, data = time.time(), texts(args.length, args.rows * args.steps)
    spec = fields(args, data=data, memory={"vram_gib": args.cap})
    if args.plain:
        spec = {name: spec[name] for name in ("model", "data", "steps", "memory")}
    with contextlib.nullcontext() if args.timed else beside(args):
        run = nbtune.finetune(spec | json.loads(args.set), name=f"c{args.number}", runs_dir=runs)
        told, paused, alone = 0, False, contextlib.nullcontext()
        while run.alive:
            seen = list(run.events())
            for e in seen[told:]:
                if isinstance(e, events.State | events.Step):  # where it is, should it never end
                    line = f"{args.number} {time.time() - began:.1f} {getattr(e, 'state', '')} {e.step}"
                    print(line, file=sys.stderr, flush=True)
            told, paused = len(seen), any(isinstance(e, events.State) and e.state == "paused" for e in seen)
            if args.timed and paused:
                break
            if args.timed and any(isinstance(e, events.Step) and e.step >= 3 for e in seen):
                run.pause()
            time.sleep(0.05)
    try:
        if args.timed and args.marks and run.alive:
            from tests.gpu.bench_predictions import alone as on_its_own

            alone = on_its_own(args.marks, False)
        with alone:
            if args.timed and run.alive:
                run.unpause()
            run.wait()
    except Exception as error:  # noqa: BLE001 — said below
        say(number=args.number, error=str(error)[:400])
    steps = [e for e in run.events() if isinstance(e, events.Step)]
    warned = [e.message for e in run.events() if isinstance(e, events.Warning) and "memory" in e.message]
    most = max((e.memory_reserved for e in steps), default=0) / GIB
    plan = run.plan
    assert plan is not None
    say(number=args.number, began=round(began, 2), state=run.state, steps=len(steps), cap=args.cap,
        reserved_gib=round(most, 2), with_context_gib=round(most + 0.85, 2), within=most + 0.85 <= args.cap,
        planned_gib=round(plan.peak_bytes / GIB, 2), micro=plan.micro_batch_size, activations=plan.activations,
        weights=str(plan.weights), warned=warned, losses=[round(e.loss, 4) for e in steps],
        seconds=[round(e.seconds, 4) for e in steps], tokens=[e.tokens for e in steps],
        planned_s=round(plan.seconds / plan.total_steps, 4))  # fmt: skip


def four(args: argparse.Namespace) -> None:
    import torch

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
    start, began = taken(), time.time()
    told = ["--length", args.length, "--rows", args.rows, "--steps", args.steps, "--cap", args.cap]
    told += ["--marks", args.marks] if args.marks else []
    command = [sys.executable, __file__, "capped", args.shape, *map(str, told)]
    both = [subprocess.Popen([*command, "--number", str(n)], text=True, stdout=subprocess.PIPE) for n in range(4)]
    say(started_within_s=round(time.time() - began, 2))
    most = 0
    while any(one.poll() is None for one in both):
        most = max(most, taken() - start)
        time.sleep(0.05)
    for one in both:
        print(one.stdout.read() if one.stdout else "", end="", flush=True)
    say(four=[one.returncode for one in both], card_took_at_most_gib=round(most / GIB, 2), caps_gib=4 * args.cap)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ten", "forced", "calm", "four", "capped"))
    parser.add_argument("shape", type=Path)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--here", action="store_true", help="ten: the engine works in this process")
    parser.add_argument("--leave", type=float, default=4.0, help="forced: GiB that the other process leaves")
    parser.add_argument("--cap", type=float, default=16.0)
    parser.add_argument("--plain", action="store_true", help="capped: nothing but model, data and steps is said")
    parser.add_argument("--set", default="{}", help="capped: more of the spec, JSON")
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--marks", type=Path, help="of bench_predictions.py, whose runs are timed beside this")
    parser.add_argument("--timed", action="store_true", help="capped: after three steps wait to be alone (--marks)")
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as runs:
        if args.what == "four":
            four(args)
        else:
            calm = functools.partial(followed, name="calm")
            {"ten": ten, "forced": forced, "calm": calm, "capped": capped}[args.what](args, Path(runs))


if __name__ == "__main__":
    main()
