"""What a run costs beyond its model step: `nbtune.finetune` against the plain loop, idle and beside a busy cell.

    python tests/gpu/bench_engine.py MODEL_DIR --batch 1 --ctx 512 --steps 200

One JSON line a measurement: seconds a step of the plain loop (`load_trainable(...).train_step`), of the engine with
its events and metrics while this process idles, and while the main thread runs pure Python.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import nbtune
from nbtune import events


def say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def plain_loop(args: argparse.Namespace) -> float:
    """Median seconds of a step without the engine."""
    import torch

    from nbtune import device
    from nbtune.models import load_trainable

    where = device.pick()
    model = load_trainable(args.model, micro_batch_size=args.batch, sequence_len=args.ctx)
    ids = [torch.randint(3, model.config.vocab_size, (args.batch, args.ctx)).to(where) for _ in range(4)]
    took = []
    for step in range(args.steps):
        device.synchronize(where)
        began = time.perf_counter()
        model.train_step(input_ids=ids[step % 4], labels=ids[step % 4], lr=1e-4)
        device.synchronize(where)
        took.append(time.perf_counter() - began)
    del model
    device.empty_cache(where)
    return statistics.median(took[10:])


def engine(args: argparse.Namespace, rows: list[dict[str, str]], runs: Path, *, busy: bool) -> float:
    """Seconds a step of a run, from the times of its events."""
    spec = {
        "model": args.model,
        "data": "rows",
        "steps": args.steps,
        "sequence_len": args.ctx,
        "micro_batch_size": args.batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "max_grad_norm": 0,
        "eval": {"split": 0, "every": 10**6},
        "train_on": "all",
    }
    run = nbtune.finetune(spec, name="bench", rows={"rows": rows}, runs_dir=runs)
    if busy:
        count = 0
        while run.alive:  # a cell of pure Python; it looks up now and then
            for _ in range(2_000_000):
                count += 1
    run.wait()
    steps = [event for event in run.events() if isinstance(event, events.Step)]
    full = sum(event.tokens == args.batch * args.ctx for event in steps)
    assert full >= 0.98 * args.steps, (
        f"only {full} of {len(steps)} steps had full rows: {[e.tokens for e in steps[:5]]}"
    )
    run.free()
    skip = min(20, len(steps) // 3)
    return (steps[-1].time - steps[skip].time) / (len(steps) - 1 - skip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="plain,idle,busy")
    args = parser.parse_args()
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    chance = random.Random(0)
    # one long text: nbtune cuts it into windows of `ctx` tokens, so that all rows but the last have that length
    rows = [{"text": " ".join(chance.choices(words, k=(args.steps + 50) * args.batch * args.ctx))}]
    plain = None
    with tempfile.TemporaryDirectory() as runs:
        for what in args.only.split(","):
            if what == "plain":
                plain = seconds = plain_loop(args)
            else:
                seconds = engine(args, rows, Path(runs), busy=what == "busy")
            share = plain / seconds if plain else None
            say(
                what=what,
                batch=args.batch,
                ctx=args.ctx,
                step_s=round(seconds, 5),
                share_of_plain=share and round(share, 3),
            )


if __name__ == "__main__":
    main()
