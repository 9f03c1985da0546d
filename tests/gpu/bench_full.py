"""Full training on a GPU: fp32 copies beside weights that are updated in backward, and how little memory these take.

    python tests/gpu/bench_full.py losses /tmp/models/llama-1b --seconds 100
    python tests/gpu/bench_full.py peak /tmp/models/llama31-8b --vram-gib 34 --length 2048

One JSON line a run. The task of `losses` can be learnt from nothing: words that follow one another by a fixed chance.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
KINDS: dict[str, dict[str, Any]] = {
    "fp32 copies": {"optim_args": {"in_backward": False}},
    "in backward, 8-bit states": {"optim_args": {"in_backward": True}, "optim": "adamw_8bit"},
    "in backward": {"optim_args": {"in_backward": True}, "optim": "adamw"},
}


def text(words: int) -> str:
    """Return words of which each makes one of three others likely."""
    chance, said = random.Random(0), ["the"]
    likely = {word: chance.sample(WORDS, 3) for word in WORDS}
    while len(said) < words:
        said.append(chance.choices(likely[said[-1]], (6, 3, 1))[0])
    return " ".join(said)


def run_of(model: Path, folder: Path, name: str, steps: int, **spec: Any) -> dict[str, Any]:
    """Train, and return what it took; nothing is saved."""
    import nbtune
    from nbtune import events

    given = {"model": str(model), "adapter": "full", "steps": steps + 30, "train_on": "all", **spec}
    given |= {"eval": {"split": 0, "every": 10**6}, "checkpoint": {"minutes": 10**4, "keep": 1}}
    began = time.time()
    run = nbtune.finetune(**given, name=name.replace(" ", "-").replace(",", ""), runs_dir=str(folder))
    done: list[Any] = []
    try:
        while run.alive and len(done) < steps:
            time.sleep(0.1)
            done = [event for event in run.events() if isinstance(event, events.Step)]
    finally:
        run.stop(save=False, wait=True)
    plan = run.plan
    if len(done) < steps or plan is None:
        return {"kind": name, "error": str(run.error), "steps": len(done)}
    seconds = [event.seconds for event in done]
    return {
        "kind": name, "planned_gib": round(plan.peak_bytes / 2**30, 2), "activations": plan.activations,
        "optimizer": plan.optimizer or given.get("optim", "adamw"), "in_backward": plan.in_backward,
        "parts": {key: round(size / 2**30, 2) for key, size in plan.memory.model_dump().items()},
        "reserved_gib": round(max(event.memory_reserved for event in done) / 2**30, 2),
        "peak_gib": round(max(event.memory_peak for event in done) / 2**30, 2),
        "planned_s": round(plan.seconds / plan.total_steps, 4), "step_s": round(statistics.median(seconds[3:]), 4),
        "whole_s": round(time.time() - began, 1),
        "loss": [round(event.loss, 4) for event in done][:: max(1, steps // 30)],
        "last": round(statistics.fmean(event.loss for event in done[-max(1, steps // 10) :]), 5),
    }  # fmt: skip


def bare(model: Path, steps: int, **given: Any) -> dict[str, Any]:
    """Do the steps of a plan by the functions of a run, without the run's folder: checkpoints would need 90 GiB."""
    import torch

    import nbtune
    from nbtune import device as machine
    from nbtune import models
    from nbtune.spec import from_mapping
    from nbtune.train.choose_stepper import choose_stepper
    from nbtune.train.loss import TokenLoss

    given = {"model": str(model), "adapter": "full", "steps": 1000, "train_on": "all", **given}
    given |= {"checkpoint": {"keep": 1}, "eval": {"split": 0}}
    plan = nbtune.plan(**given)
    spec = from_mapping({**given, "data": "rows"})
    device = machine.pick(spec.device)
    where = machine.describe(device, **spec.memory.model_dump())
    cuda = device.type == "cuda"
    began, seconds, losses = time.time(), [], []
    with machine.within_limits(device, where):
        built = models.build(
            spec.model, adapter=spec.adapter, dtype=machine.torch_dtype(plan.dtype), device=device,
            policy=plan.activations, seed=spec.seed, weights=plan.weights, tokenizer=False,
        )  # fmt: skip
        loaded = time.time() - began
        built.model.train()
        fused = built.patch is not None and "head" in built.patch.report.taken
        stepper = choose_stepper(built, TokenLoss(fused), spec=spec, plan=plan, device=device, fused=fused)
        for step in range(steps):
            batch = batch_of(plan.micro_batch_size, plan.sequence_len, step)
            moment, stepper.learning_rate = time.time(), plan.learning_rate
            stepper.accumulate(batch, denominator=batch.num_trained, step=step, micro_step=0)
            losses.append(round(float(stepper.update(plan.learning_rate).loss), 4))
            if cuda:
                torch.cuda.synchronize()
            seconds.append(round(time.time() - moment, 4))
    return {
        "kind": "as planned", "planned_gib": round(plan.peak_bytes / 2**30, 2), "activations": plan.activations,
        "optimizer": plan.optimizer or spec.optim, "in_backward": plan.in_backward,
        "rows": plan.micro_batch_size, "tokens": plan.sequence_len,
        "parts": {key: round(size / 2**30, 2) for key, size in plan.memory.model_dump().items()},
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "loaded_s": round(loaded, 1), "planned_s": round(plan.seconds / plan.total_steps, 4), "seconds": seconds,
        "loss": losses,
    }  # fmt: skip


def batch_of(rows: int, tokens: int, step: int) -> Any:
    """Return rows that are full, of a thousand words by chance."""
    import torch

    from nbtune.data.batching.collate import Batch

    ids = torch.randint(3, 1000, (rows, tokens), generator=torch.Generator().manual_seed(step))
    labels = torch.cat([ids[:, 1:], torch.full((rows, 1), -100)], 1).flatten()
    trained = (labels != -100).nonzero().flatten()
    return Batch(
        input_ids=ids, labels=ids, attention_mask=None, position_ids=torch.arange(tokens).expand(rows, -1),
        cu_seqlens=None, max_seqlen=None, num_tokens=rows * tokens, num_trained=len(trained), trained_rows=trained,
        trained_labels=labels[trained], examples=tuple(range(rows)),
    )  # fmt: skip


def main() -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["losses", "peak"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--vram-gib", type=float)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no run that would end after so many")
    parser.add_argument("--in-backward", action="store_true", help="of `peak`: also where it would fit otherwise")
    parser.add_argument("--dtype", default="bf16")
    args = parser.parse_args()
    until, longest = time.time() + args.seconds, 0.0
    losses = args.what == "losses"
    steps, rows = args.steps or (300 if losses else 8), args.rows or (8 if losses else 1)
    spec: dict[str, Any] = {"sequence_len": args.length, "batch_size": rows, "dtype": args.dtype}
    spec |= {"memory": {"vram_gib": args.vram_gib}} if args.vram_gib else {}
    spec |= {"data": [{"text": text(args.length * rows * (steps + 30))}]}
    if not losses:
        spec |= {"optim_args": {"in_backward": True}} if args.in_backward else {}
        print(json.dumps(bare(args.model, steps, **spec)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, more in KINDS.items():
            began = time.time()
            if began + longest > until:
                print(json.dumps({"kind": name, "error": "no time"}), flush=True)
                continue
            print(json.dumps(run_of(args.model, Path(folder), name, steps, **spec, **more)), flush=True)
            longest = max(longest, time.time() - began)


if __name__ == "__main__":
    main()
