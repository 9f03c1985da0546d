"""Models that no disk has held, in 4 bits, under a cap: what the plan says, what a step takes. One JSON line a row.

    python tests/gpu/bench_wide.py 13b --rows 4 --cap 9
    python tests/gpu/bench_wide.py 70b --rows 1 --cap 24
    python tests/gpu/bench_wide.py 8b --rows 1 --length 500000 --cap 74.5 --layers 8 --steps 1 --warm 0

One layer's random weights are rounded, and every layer has a copy of them: what is held, sent and decoded is that of a
model whose layers differ. The rest is nbtune's own: plan, adapter, blocks, step.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

WIDTHS = {
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "13b": (5120, 13824, 40, 40, 40, 32000),
    "70b": (8192, 28672, 80, 64, 8, 128256),
    "tiny": (256, 512, 4, 4, 2, 1024),
}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
BEGAN = time.time()


def say(**figures: object) -> None:
    print(json.dumps({"after_s": round(time.time() - BEGAN, 1), **figures}), flush=True)


def config_folder(args: argparse.Namespace) -> str:
    from transformers import AutoConfig

    *sizes, vocabulary = WIDTHS[args.shape]
    fields: dict[str, Any] = {**dict(zip(NAMES, sizes, strict=True)), "vocab_size": vocabulary, "rope_theta": 5e5}
    fields["num_hidden_layers"] = args.layers or fields["num_hidden_layers"]
    longest = max(8192, args.length)
    config = AutoConfig.for_model("llama", **fields, max_position_embeddings=longest, dtype="bfloat16")
    config.tie_word_embeddings, config.architectures = False, ["LlamaForCausalLM"]
    folder = Path(tempfile.mkdtemp(prefix="wide-"))
    config.save_pretrained(folder)
    return str(folder)


def rounded(layer: Any, dtype: Any, work: Any) -> dict[str, tuple[Any, Any]]:
    """Return the packed weights and the `QuantState` of each linear layer, on the CPU, of random ones."""
    import bitsandbytes as bnb
    import torch
    from torch import nn

    made = {}
    for name, linear in layer.named_modules():
        if type(linear) is nn.Linear:
            whole = torch.empty(linear.weight.shape, dtype=dtype, device=work).normal_(std=0.02)
            small = bnb.nn.Params4bit(whole, requires_grad=False, quant_type="nf4", compress_statistics=True).to(work)
            small.quant_state.to(torch.device("cpu"))
            made[name] = (small.data.cpu(), small.quant_state)
    return made


def fill(layer: Any, made: dict[str, tuple[Any, Any]], dtype: Any, stay: Any) -> None:
    """Give a layer that holds nothing yet its weights."""
    import bitsandbytes as bnb
    import torch
    from torch import nn

    for name, (packed, state) in made.items():
        path, _, leaf = name.rpartition(".")
        owner = layer.get_submodule(path)
        old = getattr(owner, leaf)
        new = bnb.nn.Linear4bit(
            old.in_features, old.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        own = copy.deepcopy(state)
        own.to(stay)
        new.weight = bnb.nn.Params4bit(
            packed.to(stay), requires_grad=False, quant_state=own, bnb_quantized=True, quant_type="nf4", module=new
        )
        new.quant_state = own
        setattr(owner, leaf, new)
    for module in layer.modules():
        for name, p in list(module._parameters.items()):
            if p is not None and p.is_meta:
                module._parameters[name] = nn.Parameter(torch.ones(p.shape, dtype=p.dtype, device=stay), False)


def made_in_place(folder: str, adapter: Any, way: Any, work: Any) -> Any:
    import torch
    from torch import nn

    from nbtune.models import add_adapter
    from nbtune.models.accelerate import apply
    from nbtune.models.loading import outline

    stay = torch.device("cpu") if way.weights.streams else work
    base: Any = outline(folder, dtype=torch.bfloat16, device="meta")
    inner = base.model
    for part in (inner.embed_tokens, base.lm_head):
        part.weight = nn.Parameter(
            torch.empty(part.weight.shape, dtype=torch.bfloat16, device=work).normal_(std=0.02).to(stay), False
        )
    inner.norm.weight = nn.Parameter(torch.ones(inner.norm.weight.shape, dtype=torch.bfloat16, device=stay), False)
    with torch.device(stay):
        inner.rotary_emb = type(inner.rotary_emb)(base.config)
    made = rounded(inner.layers[0], torch.bfloat16, work)
    for layer in inner.layers:
        fill(layer, made, torch.bfloat16, stay)
    base.is_loaded_in_4bit, base.config.use_cache = True, False
    say(filled=len(inner.layers))
    model = add_adapter(base, adapter, seed=0)
    say(adapter=True)
    patch = apply(model, way.activations, weights=way.weights, device=work)
    say(report=patch.report.lines())
    return model.train(), patch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=WIDTHS)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--cap", type=float, default=0.0, help="GiB of the device's memory")
    parser.add_argument("--layers", type=int, default=0, help="instead of all")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--activations", default="auto")
    args = parser.parse_args()
    if args.cap:
        os.environ["NBTUNE_VRAM_GIB"] = str(args.cap)
    import torch

    from nbtune import models
    from nbtune.device import choose_dtype, describe, memory_use, pick, reset_peak, within_limits
    from nbtune.models.cuda_graph_step import TrainStep
    from nbtune.models.memory_search import Setup, fit
    from nbtune.models.outline_facts import counted
    from nbtune.spec import AdapterSpec
    from nbtune.spec.placement import PlacementWish

    where = pick()
    facts = describe(where, rates=True)
    folder, adapter = config_folder(args), AdapterSpec(type="qlora", r=16)
    dtype = choose_dtype("bf16", replace(facts, bf16=True))[0]
    known = counted(models.model_facts(folder), folder, adapter)
    wish = PlacementWish.of_spec("auto", "qlora")
    setup = Setup(known, adapter, facts, wish.on_device(), dtype, args.length)
    best, smallest = fit(setup, [args.rows], activations=args.activations)
    way = best or smallest
    planned, reckoned = way.memory.total / 2**30, setup.seconds(way) * args.rows * args.length
    held = way.weights.words(facts.kind, known.num_layers)
    say(fits=best is not None, planned_gib=round(planned, 2), planned_s=round(reckoned, 3), held=held,
        parts=way.memory.model_dump(), activations=way.activations)  # fmt: skip
    with within_limits(where, facts):
        model, patch = made_in_place(folder, adapter, way, where)
        loaded = memory_use(where)
        reset_peak(where)
        step = TrainStep(model, patch)
        ids = torch.randint(3, known.vocab_size, (args.rows, args.length), device=where)
        took, losses = [], []
        for _ in range(args.warm + args.steps):
            began = time.perf_counter()
            loss = step.accumulate({"input_ids": ids, "labels": ids})
            step.update(1e-4)
            losses.append(round(float(loss), 4))  # waits for the device
            took.append(time.perf_counter() - began)
    use = memory_use(where)
    used = 0.0
    if where.type == "cuda":
        free, total = torch.cuda.mem_get_info(where)
        used = (total - free) / 2**30
    seconds = statistics.median(took[args.warm :])
    say(shape=args.shape, layers=known.num_layers, rows=args.rows, length=args.length, cap=args.cap,
        step_s=round(seconds, 4), tokens_s=round(args.rows * args.length / seconds), planned_s=round(reckoned, 4),
        peak_gib=round(use.peak / 2**30, 3), reserved_gib=round(use.reserved / 2**30, 3), used_gib=round(used, 3),
        loaded_gib=round(loaded.peak / 2**30, 3), planned_gib=round(planned, 2), all_s=[round(t, 3) for t in took],
        losses=losses)  # fmt: skip


if __name__ == "__main__":
    main()
