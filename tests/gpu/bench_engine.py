"""What a run costs beyond its model step: `nbtune.finetune` against the plain loop, idle and beside a busy cell.

    python tests/gpu/bench_engine.py MODEL_DIR --batch 1 --ctx 512 --steps 200

One JSON line a measurement: seconds a step of the plain loop (`load_trainable(...).train_step`), of the engine with
its events and metrics while this process idles, and while the main thread runs pure Python. `packed`: rows of
log-normal lengths (mean 300) share sequences; trained tokens a second. Beside them stand the seconds from the call of
`finetune` to the start of the loop and to the end of the first step; `--profile FILE` says where these go.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
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
    from nbtune.device.streams import synchronize
    from nbtune.models import load_trainable

    where = device.pick()
    model = load_trainable(args.model, micro_batch_size=args.batch, sequence_len=args.ctx)
    ids = [torch.randint(3, model.config.vocab_size, (args.batch, args.ctx)).to(where) for _ in range(4)]
    took = []
    for step in range(args.steps):
        synchronize(where)
        began = time.perf_counter()
        model.train_step(input_ids=ids[step % 4], labels=ids[step % 4], lr=1e-4)
        synchronize(where)
        took.append(time.perf_counter() - began)
    del model
    device.empty_cache(where)
    return statistics.median(took[10:])


def spec_of(args: argparse.Namespace, **changes: object) -> dict[str, object]:
    return {
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
        **changes,
    }


def engine(args: argparse.Namespace, rows: list[dict[str, str]], runs: Path, *, busy: bool) -> dict[str, float]:
    """Median seconds of a run's steps."""
    began = time.time()
    run = nbtune.finetune(spec_of(args), name="bench", rows={"rows": rows}, runs_dir=runs)
    if busy:
        count = 0
        while run.alive:  # a cell of pure Python; it looks up now and then
            for _ in range(2_000_000):
                count += 1
    run.wait()
    steps = steps_of(run)
    # the text's last window is shorter, so its step is another one
    full = [e.seconds for e in steps[min(20, len(steps) // 3) :] if e.tokens == args.batch * args.ctx]
    assert len(full) >= 0.5 * len(steps), f"only {len(full)} of {len(steps)} steps had full rows"
    return {"step_s": round(statistics.median(full), 5), **beginnings(run, began)}


def steps_of(run: nbtune.Run) -> list[events.Step]:
    """The steps of a run, whose model is let go."""
    run.free()
    return [event for event in run.events() if isinstance(event, events.Step)]


def beginnings(run: nbtune.Run, began: float) -> dict[str, float]:
    """Seconds to the loop's start and to its first step's end."""
    running = next(e for e in run.events() if isinstance(e, events.State) and e.state == "running")
    first = next(e for e in run.events() if isinstance(e, events.Step))
    return {"running_after_s": round(running.time - began, 2), "first_step_after_s": round(first.time - began, 2)}


def short_rows(args: argparse.Namespace, count: int) -> list[dict[str, str]]:
    """Texts of log-normal lengths, mean about 300 tokens, at most `ctx`: one word is one token."""
    chance = random.Random(1)
    lengths = [max(8, min(args.ctx - 2, round(chance.lognormvariate(5.38, 0.8)))) for _ in range(count)]
    return [{"text": " ".join(chance.choices(WORDS, k=n))} for n in lengths]


def packed(args: argparse.Namespace, runs: Path) -> dict[str, float]:
    """Tokens and trained tokens a second of packed rows."""
    rows = short_rows(args, args.steps * args.batch * args.ctx // 250)
    began = time.time()
    run = nbtune.finetune(spec_of(args, packing=True), name="packed", rows={"rows": rows}, runs_dir=runs).wait()
    steps = steps_of(run)
    skip = min(20, len(steps) // 3)
    took = steps[-1].time - steps[skip].time
    return {
        "step_s": round(took / (len(steps) - 1 - skip), 5),
        "tokens_s": round(sum(e.tokens for e in steps[skip + 1 :]) / took),
        "trained_tokens_s": round(sum(e.trained_tokens for e in steps[skip + 1 :]) / took),
        "peak_gib": round(steps[-1].memory_peak / 2**30, 2),
        **beginnings(run, began),
    }


WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--profile", default="")
    parser.add_argument("--only", default="plain,idle,busy")
    args = parser.parse_args()
    chance = random.Random(0)
    # one long text: nbtune cuts it into windows of `ctx` tokens, so that all rows but the last have that length
    rows = [{"text": " ".join(chance.choices(WORDS, k=(args.steps + 50) * args.batch * args.ctx))}]
    if args.profile:  # a run's process is started with `sys.executable`
        wrapper = Path(tempfile.mkdtemp()) / "python"
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m cProfile -o {args.profile} "$@"\n')
        wrapper.chmod(0o755)
        sys.executable = str(wrapper)
    plain = None
    with tempfile.TemporaryDirectory() as runs:
        for what in args.only.split(","):
            figures: dict[str, float]
            if what == "plain":
                plain = plain_loop(args)
                figures = {"step_s": round(plain, 5)}
            elif what == "packed":
                figures = packed(args, Path(runs))
            else:
                figures = engine(args, rows, Path(runs), busy=what == "busy")
            share = round(plain / figures["step_s"], 3) if plain else None
            say(what=what, batch=args.batch, ctx=args.ctx, share_of_plain=share, **figures)


if __name__ == "__main__":
    main()
