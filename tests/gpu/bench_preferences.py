"""Steps of a preference method on a published shape, by nbtune, on one GPU; prints a JSON line for each way.

    python tests/gpu/bench_preferences.py dpo llama-8b keep/4 keep/1 selective/2 recompute/4
    python tests/gpu/bench_preferences.py kto llama-1b keep/4 keep/4/plain --profile

A way is what blocks keep, how many pairs a micro-batch has, `plain` for steps that are not recorded, `apart` for
prompts that go through the model twice, `kept` for rows that the reference has seen before, `half` for prompts of half
a row in place of a quarter. Random weights, LoRA r = 16 on all linear layers; pairs of 2×1,024 tokens.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.gpu.bench_families import SHAPES, model_of

TINY: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1024,
}  # fmt: skip
SHAPES["llama-1b"] = ("llama", {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
})  # fmt: skip
SHAPES["tiny"] = ("llama", TINY)
WARM: list[Any] = []  # called when a way is warm, before it is measured


def rows(pairs: int, tokens: int, vocabulary: int, share: float = 0.25) -> Any:
    """Pairs as a data set: better, worse, better, …"""
    from nbtune.data.prepare.dataset import Builder

    builder, draw = Builder(["rows"]), np.random.default_rng(0)
    begin = int(tokens * share) + 1  # the prompt's last token predicts both answers' first, and stands twice
    trained = np.arange(tokens) >= begin
    for pair in range(pairs):
        prompt = draw.integers(3, vocabulary, begin)
        for better in (1.0, 0.0):
            ids = np.concatenate([prompt, draw.integers(3, vocabulary, tokens - begin)]).astype(np.int32)
            builder.add(ids, trained, 0, pair, value=better)
    return builder.build()


def stepper_of(built: Any, method: str, words: list[str], device: torch.device) -> Any:
    """Return a run's own stepper."""
    from nbtune.methods import METHODS
    from nbtune.spec import RunSpec
    from nbtune.train.choose_stepper import choose_stepper
    from nbtune.train.kept_reference import KeptReference
    from nbtune.train.logprobs import Asking
    from nbtune.train.loss import loss_of

    spec = RunSpec(data="rows", method=method, weight_decay=0.01)
    plan: Any = SimpleNamespace(weights=SimpleNamespace(shards=False), dtype="bf16", learning_rate=1e-5)
    asking = Asking(share="apart" not in words, kept=KeptReference(device) if "kept" in words else None)
    stepper = choose_stepper(built, loss_of(METHODS[method], asking=asking), spec=spec, plan=plan, device=device)
    if "plain" not in words:
        assert type(stepper).__name__ == "FusedStepper" or device.type == "cpu", "is not recorded"
    elif hasattr(stepper, "_step"):
        stepper._step._graphs = False
    return stepper


def measure(built: Any, args: Any, way: str, device: torch.device) -> dict[str, Any]:
    """Return what steps of that way take."""
    from nbtune.data.batching.collate import collate

    policy, micro, *words = way.split("/")
    built.patch.set_policy(policy)
    stepper, share = stepper_of(built, args.method, words, device), 0.5 if "half" in words else 0.25
    data = rows(4 * args.pairs, args.tokens, built.model.config.vocab_size, share)
    size, times, losses = 2 * int(micro), [], []
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()

    def step(index: int) -> Any:
        chosen = range(2 * args.pairs * (index % 4), 2 * args.pairs * (index % 4 + 1))
        batches = [collate(data, [*chosen[i : i + size]], multiple=64, bucket=256) for i in range(0, len(chosen), size)]
        stepper.look_ahead(batches, step=index)
        for number, batch in enumerate(batches):
            stepper.accumulate(batch, denominator=args.pairs, step=index, micro_step=number)
        return stepper.update(1e-5).loss

    warmup = args.warmup + (7 if "kept" in words else 0)  # until all rows are known, and steps without are recorded
    for index in range(warmup + args.steps):
        if index == warmup:
            for warm in WARM:
                warm()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        loss = step(index)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        losses.append(round(float(loss), 4))
    if args.profile and way == args.ways[0]:
        profiled(step, warmup + args.steps)
    middle = sorted(times[warmup:])[args.steps // 2]
    peak, reserved = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30
    stepper.forget_recordings()
    return {
        "method": args.method, "shape": args.shape, "weights": args.weights, "prompt": share, "way": way,
        "step_s": round(middle, 4), "tokens_s": round(2 * args.pairs * args.tokens / middle),
        "peak_gib": round(peak, 2), "reserved_gib": round(reserved, 2), "losses": losses,
    }  # fmt: skip


def profiled(step: Any, index: int) -> None:
    """Print which kernels a step launches, and how long the host is at it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        begin = time.perf_counter()
        step(index)
        launched = time.perf_counter() - begin
        torch.cuda.synchronize()
    print(f"the host was at it for {launched:.4f} s of {time.perf_counter() - begin:.4f} s")
    table = found.key_averages().table(sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=70)
    print("\n".join(line[:70] + line[-95:] for line in table.splitlines()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("ways", nargs="+")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--weights", default="16bit", help="the format of frozen weights: 16bit or fp8")
    parser.add_argument("--profile", action="store_true", help="the first way")
    args = parser.parse_args()
    from nbtune.models import Built
    from nbtune.models.accelerate import apply
    from nbtune.spec.placement import Placement

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = model_of(args.shape, device)
    patch = apply(model, "keep", weights=Placement(format=args.weights))
    built = Built(model, None, None, patch)  # type: ignore[arg-type]
    print(*built.patch.report.lines(), sep="\n    ")  # type: ignore[union-attr]
    for way in args.ways:
        try:
            print(json.dumps(measure(built, args, way, device)), flush=True)
        except (RuntimeError, AssertionError) as error:  # the other ways are to be measured all the same
            print(f"{way}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
