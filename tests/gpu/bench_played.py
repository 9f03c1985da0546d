"""Runs on cards that are not there, played on the one that is: what the plan chooses, does it fit, its step.

    python tests/gpu/bench_played.py colab MODEL            8 short rows a step, 2 × 4, QLoRA, as Unsloth's for a T4
    python tests/gpu/bench_played.py rtx3090 MODEL --adapter lora       4 rows of 2,048 tokens
    python tests/gpu/bench_played.py rtx4090 MODEL --adapter qlora

Through `nbtune.finetune` with model, data, steps, adapter and the rows of a step. `tests/gpu/played.py` says what a
process is made to see. The plan reckons with the played card's products (by its maker) and link, the steps are
made by the products of the card that is there: their seconds are the link's and the memory's, not a T4's arithmetic.
With `--lock FILE` runs load beside each other and train alone (FILE.CARD.ADAPTER: it is loaded). One JSON line.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

GIB = 2**30
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
STEPS_OF_UNSLOTH, SECONDS_OF_UNSLOTH = 60, 463  # its notebook's own words: 8 short rows a step on a T4, 7.92 GB


def texts(args: argparse.Namespace, count: int) -> list[dict[str, str]]:
    """Short rows of log-normal lengths (mean about 170 words, at most 500), or rows as long as a sequence."""
    chance = random.Random(1)

    def words() -> int:
        return max(8, min(500, round(chance.lognormvariate(4.95, 0.6)))) if args.short else args.length - 8

    return [{"text": " ".join(chance.choices(WORDS, k=words()))} for _ in range(count)]


def inside(args: argparse.Namespace) -> dict[str, Any]:
    """Train, in a process that is played."""
    import nbtune
    from nbtune import events

    spec: dict[str, Any] = {"model": args.model, "steps": args.steps, "adapter": args.adapter, **json.loads(args.set)}
    spec |= {"batch_size": 8, "micro_batch_size": 2} if args.short else {"batch_size": 4, "sequence_len": args.length}
    spec["data"] = texts(args, spec["batch_size"] * (args.steps + 2))
    began = time.time()
    with tempfile.TemporaryDirectory() as runs:
        run = nbtune.finetune(spec, name="played", runs_dir=runs)
        run.pause()
        while run.alive and not any(isinstance(e, events.State) and e.state == "paused" for e in run.events()):
            time.sleep(0.05)
        loaded = time.time() - began
        error = None
        with open(args.lock or os.devnull, "a") as lock:
            if args.lock:
                Path(f"{args.lock}.{args.card}.{args.adapter}").touch()  # loaded, and waiting
                fcntl.flock(lock, fcntl.LOCK_EX)
            run.unpause()
            try:
                run.wait()
            except Exception as failure:  # noqa: BLE001 — said below
                error = str(failure)[:400]
        steps = [e for e in run.events() if isinstance(e, events.Step)]
        warned = [e.message for e in run.events() if isinstance(e, events.Warning) and "memory" in e.message]
        plan = run.plan
    assert plan is not None
    return {
        "state": run.state, "error": error, "steps": len(steps), "loaded_after_s": round(loaded, 1),
        "dtype": plan.dtype, "micro": plan.micro_batch_size, "accumulated": plan.gradient_accumulation_steps,
        "weights": str(plan.weights), "activations": plan.activations,
        "planned_gib": round(plan.peak_bytes / GIB, 2), "warned": warned,
        "packing": plan.packing, "planned_s": round(plan.seconds / plan.total_steps, 3),
        "losses": [round(e.loss, 4) for e in steps], "tokens": [e.tokens for e in steps],
        "seconds": [round(e.seconds, 4) for e in steps],
        "reserved_gib": round(max((e.memory_reserved for e in steps), default=0) / GIB, 2),
    }  # fmt: skip


def end_with(parent: int) -> None:
    """End this process, and so its run, when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def environment(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Return what makes a process a played one."""
    from played import CARDS

    from nbtune.device import machine

    card = CARDS[args.card]
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport played\n"
    )
    (folder / "cache").mkdir()
    facts = machine(card.machine)
    (folder / "cache/rates.json").write_text(json.dumps({card.name: [facts.flops, card.link, 15e-6]}))
    more = {"PLAYED": args.card, "PLAYED_AT": str(folder), "NBTUNE_CACHE": str(folder / "cache")}
    more["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    if card.threads:
        more["OMP_NUM_THREADS"] = str(card.threads)
    if card.ram_gib:
        more["NBTUNE_RAM_GIB"] = str(card.ram_gib)
    return {**os.environ, **more}


def told(folder: Path) -> dict[str, Any]:
    """Return what the played processes held at most, each; the sums are those of peaks, so at most too much."""
    from played import CONTEXT

    every = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    every = [one for one in every if one.get("ram", 0) > 0]
    on_card = [one["reserved_peak"] + CONTEXT for one in every if one.get("began")]
    return {
        "ram_gib_each": [round(one["ram"] / GIB, 2) for one in every],
        "ram_parts_gib": [{k: round(v / GIB, 2) for k, v in one["ram_parts"].items()} for one in every],
        "ram_gib": round(sum(one["ram"] for one in every) / GIB, 2),
        "card_gib_each": [round(one / GIB, 2) for one in on_card], "card_gib": round(sum(on_card) / GIB, 2),
        "kernels_with_dot": sorted({name for one in every for name in one.get("dots", [])}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card", choices=("colab", "rtx3090", "rtx4090"))
    parser.add_argument("model")
    parser.add_argument("--adapter", default="qlora")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--set", default="{}", help="more of the spec, JSON")
    parser.add_argument("--lock", default="")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.short = args.card == "colab"
    if args.inside:
        threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
        Path(args.inside).write_text(json.dumps(inside(args)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder, answer = Path(place), Path(place) / "answer"
        command = [sys.executable, __file__, *sys.argv[1:], "--inside", str(answer)]
        done = subprocess.run(command, env=environment(args, folder), check=False)
        row: dict[str, Any] = json.loads(answer.read_text()) if answer.is_file() else {"error": f"rc {done.returncode}"}
        row = {"card": args.card, "adapter": args.adapter, "model": Path(args.model).name, **row, **told(folder)}
    if len(row.get("seconds", [])) > 2:
        late, tokens = row["seconds"][2:], row["tokens"][2:]
        row |= {"step_s": round(statistics.mean(late), 4), "tokens_s": round(sum(tokens) / sum(late))}
        if args.short:
            row["sixty_steps_s"] = round(STEPS_OF_UNSLOTH * row["step_s"], 1)
            row["unsloth_on_a_t4_s"] = SECONDS_OF_UNSLOTH
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
