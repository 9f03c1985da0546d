"""Full training on a GPU: fp32 copies beside weights that are updated in backward, and how little memory these take.

    python tests/gpu/bench_full.py losses /tmp/models/llama-1b --length 256 --rows 8 --steps 300 --seconds 100
    python tests/gpu/bench_full.py peak /tmp/models/llama31-8b --length 2048 --vram-gib 34

One JSON line a way. Steps are those of a plan, by the functions of a run, without the run's folder: checkpoints of an
8B model would take 90 GiB. The task can be learnt from nothing: 64 tokens, of which each makes four others likely.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

KINDS: dict[str, dict[str, Any]] = {
    "fp32 copies": {"optim_args": {"in_backward": False}},
    "in backward, 8-bit states": {"optim_args": {"in_backward": True}, "optim": "adamw_8bit"},
    "in backward": {"optim_args": {"in_backward": True}, "optim": "adamw"},
}
WORDS, LIKELY, WARM = 64, (0.55, 0.25, 0.15, 0.05), 10


def batch_of(rows: int, tokens: int, step: int) -> Any:
    """Return rows that are full."""
    from nbtune.data.batching.collate import Batch

    draws = torch.Generator().manual_seed(1)
    after = torch.stack([torch.randperm(WORDS, generator=draws)[: len(LIKELY)] for _ in range(WORDS)])
    chances = torch.tensor(LIKELY).expand(rows, -1)
    draws.manual_seed(1000 + step)
    now, said = torch.randint(WORDS, (rows,), generator=draws), []
    for _ in range(tokens):
        said.append(now)
        now = after[now].gather(1, torch.multinomial(chances, 1, generator=draws)).flatten()
    ids = torch.stack(said, 1) + 10
    nexts = torch.cat([ids[:, 1:], torch.full((rows, 1), -100)], 1).flatten()
    trained = (nexts != -100).nonzero().flatten()
    return Batch(
        input_ids=ids, labels=ids, attention_mask=None, position_ids=torch.arange(tokens).expand(rows, -1),
        cu_seqlens=None, max_seqlen=None, num_tokens=rows * tokens, num_trained=len(trained), trained_rows=trained,
        trained_labels=nexts[trained], examples=tuple(range(rows)),
    )  # fmt: skip


def measured(kind: str, model: Path, batches: list[Any], marks: Path | None, **given: Any) -> dict[str, Any]:
    """Plan, load, train, where nothing is timed meanwhile; and return what it took."""
    import nbtune
    from nbtune import device as machine
    from nbtune import models
    from nbtune.spec import from_mapping
    from nbtune.train.choose_stepper import choose_stepper
    from nbtune.train.loss import TokenLoss
    from tests.gpu.bench_predictions import loading

    rows, tokens = batches[0].input_ids.shape
    given = {"model": str(model), "adapter": "full", "steps": len(batches), "train_on": "all", **given}
    given |= {"sequence_len": tokens, "batch_size": rows, "eval": {"split": 0}}
    plan = nbtune.plan(**given, data=[{"text": "the quick brown fox jumps " * tokens * rows}] * 2)
    spec = from_mapping({**given, "data": "rows"})
    device, cuda = machine.pick(spec.device), torch.cuda.is_available()
    where = machine.describe(device, **spec.memory.model_dump())
    seconds, losses, began = [], [], time.time()
    with machine.within_limits(device, where):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        built = models.build(
            spec.model, adapter=spec.adapter, dtype=machine.torch_dtype(plan.dtype), device=device,
            policy=plan.activations, seed=spec.seed, weights=plan.weights, tokenizer=False,
        )  # fmt: skip
        loaded = time.time() - began
        built.model.train()
        fused = built.patch is not None and "head" in built.patch.report.taken
        stepper = choose_stepper(built, TokenLoss(fused), spec=spec, plan=plan, device=device, fused=fused)
        for step, batch in enumerate(batches):
            rate = plan.learning_rate * min((step + 1) / WARM, 1 - step / len(batches))
            with contextlib.nullcontext() if marks is None else loading(marks):
                moment, stepper.learning_rate = time.time(), rate
                stepper.accumulate(batch, denominator=batch.num_trained, step=step, micro_step=0)
                losses.append(float(stepper.update(rate).loss))
                seconds.append(time.time() - moment)
    shown = losses[:: max(1, len(losses) // 20)]
    return {
        "kind": kind, "rows": rows, "tokens": tokens, "steps": len(batches), "activations": plan.activations,
        "in_backward": plan.in_backward, "optimizer": plan.optimizer or spec.optim,
        "rate": plan.learning_rate, "planned_gib": round(plan.peak_bytes / 2**30, 2),
        "parts": {key: round(size / 2**30, 2) for key, size in plan.memory.model_dump().items()},
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "loaded_s": round(loaded, 1), "planned_s": round(plan.seconds / plan.total_steps, 4),
        "step_s": round(statistics.median(seconds[2:] or seconds), 4), "first_s": [round(s, 2) for s in seconds[:3]],
        "last": round(statistics.fmean(losses[-max(1, len(losses) // 10) :]), 5),
        "loss": [round(loss, 4) for loss in shown],
    }  # fmt: skip


def main() -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["losses", "peak"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--vram-gib", type=float)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no way that would end after so many")
    parser.add_argument("--in-backward", action="store_true", help="of `peak`: also where it would fit otherwise")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--kind", choices=KINDS, help="of `losses`: this one alone")
    parser.add_argument("--marks", type=Path, help="of bench_predictions.py, whose runs are timed between steps")
    args = parser.parse_args()
    until, longest = time.time() + args.seconds, 0.0
    spec: dict[str, Any] = {"dtype": args.dtype}
    spec |= {"memory": {"vram_gib": args.vram_gib}} if args.vram_gib else {}
    asked = {"optim_args": {"in_backward": True}} if args.in_backward else {}
    batches = [batch_of(args.rows, args.length, step) for step in range(args.steps)]
    kinds = KINDS if args.what == "losses" else {"as planned": asked}
    for kind, more in kinds.items() if args.kind is None else [(args.kind, kinds[args.kind])]:
        began = time.time()
        if began + longest > until:
            print(json.dumps({"kind": kind, "error": "no time"}), flush=True)
            continue
        print(json.dumps(measured(kind, args.model, batches, args.marks, **spec, **more)), flush=True)
        longest = max(longest, time.time() - began)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
