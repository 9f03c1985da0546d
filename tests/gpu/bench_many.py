"""One run on one and on several GPUs of a host: tokens a second, memory, losses. One JSON line a row.

    python tests/gpu/bench_many.py make MODEL_DIR --shape 8b
    python tests/gpu/bench_many.py run MODEL_DIR --name lora-2 --gpus 2 --rows 8 --steps 14
    python tests/gpu/bench_many.py run MODEL_DIR --name full-4 --gpus 4 --rows 16 --set adapter=full weights=sharded
    python tests/gpu/bench_many.py killed MODEL_DIR --gpus 4 --on 3,4
    python tests/gpu/bench_many.py stock MODEL_DIR --gpus 4 --rows 16        (torch's FSDP2, transformers' model)
    python tests/gpu/bench_many.py wide MODEL_DIR --gpus 4 --rows 4          (a config alone; made in place)
    python tests/gpu/bench_many.py links none --gpus 4

`CUDA_VISIBLE_DEVICES` chooses the GPUs. Seconds a step are those of the run's own events, the median of steady steps.
A row that fails prints what the run's folder says of it, and the script's exit code is 1. `wide`, `stock` and `links`
are in `bench_many_parts.py` and `many_links.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbtune
from nbtune import events

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
BEGAN = time.time()
WARM = 5  # steps before the steady ones: two as they are, then a recording of each kind


def say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def texts(count: int) -> list[dict[str, str]]:
    """One long text: nbtune cuts it into windows of equal length."""
    return [{"text": " ".join(random.Random(0).choices(WORDS, k=count))}]


def pairs(count: int, words: int) -> list[dict[str, str]]:
    """Preferences of about so many tokens a side, a quarter of them the prompt's."""
    chance = random.Random(1)

    def some(k: int) -> str:
        return " ".join(chance.choices(WORDS, k=k))

    def one() -> dict[str, str]:
        sides = {side: f" {some(words - words // 4)}" for side in ("chosen", "rejected")}
        return {"prompt": some(words // 4), **sides}

    return [one() for _ in range(count)]


def spec_of(args: argparse.Namespace) -> dict[str, Any]:
    """The spec of a row: every step has full rows alone."""
    spec: dict[str, Any] = {
        "model": args.model,
        "data": "rows",
        "steps": args.steps,
        "sequence_len": args.ctx,
        "batch_size": args.rows,
        "micro_batch_size": args.micro,
        "learning_rate": 1e-4,
        "eval": {"split": 0, "every": 10**6},
        "checkpoint": {"keep": 1},
    }
    if args.gpus > 1:
        spec["gpus"] = args.gpus
    for change in args.set:
        key, _, value = change.partition("=")
        spec[key] = value if value.isidentifier() else json.loads(value)
    if "method" not in spec:
        spec["train_on"] = "all"
    return spec


def rows_of(args: argparse.Namespace, spec: dict[str, Any]) -> list[dict[str, str]]:
    """The data, the same for any number of GPUs."""
    if "method" in spec:
        return pairs(12 * 16, args.ctx - 16)
    return texts(args.windows * args.ctx)


def steps_of(run: nbtune.Run) -> list[events.Step]:
    return [event for event in run.events() if isinstance(event, events.Step)]


def memory_of_cards() -> list[int]:
    """MiB in use of each visible GPU; none where there is none."""
    ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    used = [int(word) for word in said.split()]
    seen = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.isdigit()]
    return [used[int(i)] for i in seen] if seen else used


def watch(run: nbtune.Run, enough: Callable[[list[events.Step]], bool], seconds: float) -> list[events.Step]:
    """Wait until a run has done enough, or has ended, or this process is so many seconds old."""
    until = BEGAN + seconds
    while run.alive and time.time() < until:
        steps = steps_of(run)
        if enough(steps):
            return steps
        time.sleep(0.1)
    return steps_of(run)


def stacks(run: nbtune.Run) -> None:
    """Have the processes of a run that hangs say where they are (with PYTHONFAULTHANDLER=1), in its worker.log."""
    for pid in workers_of(run.folder).values() if run.alive else ():
        os.kill(pid, signal.SIGABRT)
    time.sleep(2)


def last_words(folder: Path) -> None:
    """Print all that a run's folder has to say of a failure."""
    for name in ("events.jsonl", "traceback.txt", "worker.log"):
        path = folder / name
        if path.is_file():
            print(f"--- {folder.name}/{name}\n{path.read_text(errors='replace')[-12000:]}", flush=True)


def figures(run: nbtune.Run, steps: list[events.Step], began: float, full: int) -> dict[str, Any]:
    """What the events of a run say of its speed and memory."""
    plan = json.loads((run.folder / "plan.json").read_text())
    steady = [e for e in steps[WARM:] if not full or e.tokens == full]
    running = next(e for e in run.events() if isinstance(e, events.State) and e.state == "running")
    told = {
        "gpus": plan["gpus"],
        "weights": plan["weights"],
        "activations": plan["activations"],
        "micro": plan["micro_batch_size"],
        "accumulated": plan["gradient_accumulation_steps"],
        "planned_gib": round(sum(plan["memory"].values()) / 2**30, 2),
        "running_after_s": round(running.time - began, 1),
        "first_step_after_s": round(steps[0].time - began, 1),
        "losses": [round(e.loss, 6) for e in steps],
        "norms": [round(e.grad_norm, 5) for e in steps],
        "seconds": [round(e.seconds, 4) for e in steps],
        "allocated_gib": round(steps[-1].memory_allocated / 2**30, 2),
        "peak_gib": round(max(e.memory_peak for e in steps) / 2**30, 2),
    }
    if steady:
        step_s = statistics.median(e.seconds for e in steady)
        apart = [b.time - a.time for a, b in zip(steps[WARM:], steps[WARM + 1 :], strict=False)]
        told |= {
            "steady": len(steady),
            "step_s": round(step_s, 5),
            "tok_s": round(statistics.median(e.tokens / e.seconds for e in steady)),
            "tok_s_by_the_clock": round(steady[-1].tokens / statistics.median(apart)) if apart else None,
        }
    return told


def run_row(args: argparse.Namespace) -> None:
    """Train, stop without saving once there are enough steps, and say what it took."""
    spec, wanted = spec_of(args), args.steps
    spec["steps"] = 400  # it is ended before: saving is no step's cost, and all rows have one schedule
    rows, began = rows_of(args, spec), time.time()
    run = nbtune.finetune(spec, name=args.name, rows={"rows": rows}, runs_dir=args.runs)
    cards: list[list[int]] = []

    def enough(steps: list[events.Step]) -> bool:
        if len(steps) > WARM and not cards:
            cards.append(memory_of_cards())
        return len(steps) >= wanted

    steps = watch(run, enough, args.seconds)[:wanted]
    if len(steps) < wanted:
        stacks(run)
        last_words(run.folder)
        told = f"{len(steps)} of {wanted} steps"
        say(row=args.name, failed=told, state=run.state, total_s=round(time.time() - began, 1))
    if run.alive:
        run.stop(save=False)
        watch(run, lambda _: False, time.time() - BEGAN + 40)
    if len(steps) < wanted:
        sys.exit(1)
    full = 0 if "method" in spec else args.rows * args.ctx
    told = figures(run, steps, began, full)
    say(row=args.name, rows=args.rows, ctx=args.ctx, **told, cards_mib=cards[:1], total_s=round(time.time() - began, 1))
    shutil.rmtree(run.folder, ignore_errors=True)


# -- a process that is killed ----------------------------------------------------------------------------------------


def workers_of(folder: Path) -> dict[int, int]:
    """The processes of a run: rank to process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
            environ = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [word[5:] for word in environ if word.startswith(b"RANK=")]
        if b"nbtune.engine" in line and os.fsencode(folder) in line and rank:
            found[int(rank[0])] = int(entry.name)
    return found


def killed_row(args: argparse.Namespace) -> None:
    """Kill one process of a run, go on with other numbers, and compare with a run that nobody disturbed."""
    spec = {**spec_of(args), "checkpoint": {"every": 4, "keep": 1}, "steps": args.steps}
    rows = rows_of(args, spec)
    whole = nbtune.finetune(spec, name=f"{args.name}-whole", rows={"rows": rows}, runs_dir=args.runs)
    run = nbtune.finetune(spec, name=f"{args.name}-hurt", rows={"rows": rows}, runs_dir=args.runs)  # both at once
    watch(run, lambda steps: len(steps) >= 6, args.seconds)
    os.kill(workers_of(run.folder)[args.gpus - 1], signal.SIGKILL)
    at = time.time()
    watch(run, lambda _: False, time.time() - BEGAN + 60)
    said = [e.detail for e in run.events() if isinstance(e, events.State)][-1]
    say(row=args.name, gpus=args.gpus, killed=args.gpus - 1, noticed_after_s=round(time.time() - at, 1), said=said)
    true = [e.loss for e in steps_of(whole.wait(args.seconds))]
    resumed = [(count, resumed_on(run.folder, count, args)) for count in map(int, args.on.split(","))]
    for count, again in resumed:
        try:
            again.wait(args.seconds)
        except Exception as error:  # noqa: BLE001 - the other rows count
            last_words(again.folder)
            say(row=args.name, resumed_on=count, failed=str(error))
            continue
        last = {e.step: e.loss for e in steps_of(again)}
        apart = [abs(last[i + 1] - loss) for i, loss in enumerate(true)]
        figures = {"most_apart": round(max(apart), 6), "mean_apart": round(statistics.mean(apart), 6)}
        both = {"losses": [round(last[i + 1], 6) for i in range(len(true))], "undisturbed": [round(x, 6) for x in true]}
        say(row=args.name, resumed_on=count, gpus=again.plan.gpus, state=again.state, **figures, **both)


def resumed_on(folder: Path, count: int, args: argparse.Namespace) -> nbtune.Run:
    """Go on with a copy of a run, with so many GPUs."""
    copy = args.runs / f"{args.name}-on-{count}"
    shutil.copytree(folder, copy)
    told = (copy / "spec.yaml").read_text()
    (copy / "spec.yaml").write_text(told.replace(f"gpus: {args.gpus}", f"gpus: {count}"))
    return nbtune.attach(copy, args.runs).resume()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = made.add_subparsers(dest="what", required=True)
    for name in ("run", "killed", "stock", "wide", "links", "make"):
        one = kinds.add_parser(name)
        one.add_argument("model")
        one.add_argument("--name", default=name)
        one.add_argument("--gpus", type=int, default=1)
        one.add_argument("--rows", type=int, default=4, help="of a step, all GPUs' together")
        one.add_argument("--micro", type=int, default=4)
        one.add_argument("--ctx", type=int, default=2048)
        one.add_argument("--steps", type=int, default=14)
        one.add_argument("--windows", type=int, default=16 * 24)
        one.add_argument("--seconds", type=float, default=120)
        one.add_argument("--set", nargs="*", default=[])
        one.add_argument("--shape", default="8b")
        one.add_argument("--on", default="3,4")
        one.add_argument("--compile", action="store_true")
        one.add_argument("--checkpointing", action="store_true")
        one.add_argument("--profile", action="store_true", help="of `wide`: print what the GPU did in three steps")
        one.add_argument("--runs", type=Path, default=None)
    return made


def main() -> None:
    args = parser().parse_args()
    if args.what in ("stock", "wide", "links"):
        import bench_many_parts

        bench_many_parts.spread(args)
        return
    if args.what == "make":
        import bench_many_parts

        bench_many_parts.make(Path(args.model), args.shape)
        return
    with tempfile.TemporaryDirectory() as folder:
        args.runs = args.runs or Path(folder)
        {"run": run_row, "killed": killed_row}[args.what](args)


if __name__ == "__main__":
    main()
