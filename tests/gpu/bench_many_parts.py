"""What `bench_many.py` does in processes of its own: a model of random weights that no disk has held (`wide`), and
torch's FSDP2 around transformers' model as a yardstick (`stock`).

`wide` makes a layer's weights on the device as nbtune brings the layer there; all else are a run's own functions: its
plan, adapter, blocks, parting, stepper and loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

WIDTHS = {
    "8b": (4096, 14336, 32, 32),
    "70b": (8192, 28672, 80, 64),
    "1b": (2048, 8192, 16, 32),
    "tiny": (256, 512, 4, 8),
}  # layers, heads
REST = {"num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5}
WARM = 4
MEETING = "NBTUNE_MEETING"
BEGAN = time.time()


def at(what: str) -> None:
    """Say how old this process is."""
    if os.environ.get("RANK", "0") == "0":
        print(f"+{time.time() - BEGAN:.1f} s: {what}", file=sys.stderr, flush=True)


def outline_folder(folder: Path, shape: str) -> None:
    """Write config and tokenizer of a model; its weights are nowhere."""
    from bench_many import WORDS
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    size = {"vocab_size": 1024 if shape == "tiny" else 128256}
    fields = {**REST, **dict(zip(names, WIDTHS[shape], strict=True)), **size, **ids}
    AutoConfig.for_model("llama", **fields, tie_word_embeddings=False, dtype="bfloat16").save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=8192, **special).save_pretrained(folder)


def make(folder: Path, shape: str) -> None:
    """Write a model of random weights, a file a layer, many at once: sooner than `save_pretrained` does."""
    import struct
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nbtune import device as machine

    began, device = time.time(), machine.pick("auto")
    outline_folder(folder, shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    files: dict[str, list[tuple[str, Any]]] = {}
    for name, weight in model.state_dict().items():
        part = name.split(".")[2] if ".layers." in name else name.replace(".", "-")
        files.setdefault(f"model-{part}.safetensors", []).append((name, weight))

    def write(number: int, file: str) -> None:
        header, at, weights = {}, 0, files[file]
        for name, weight in weights:
            header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [at, at + 2 * weight.numel()]}
            at += 2 * weight.numel()
        told = json.dumps(header).encode()
        told += b" " * (-len(told) % 8)
        chance = torch.Generator(device).manual_seed(number)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(told)) + told)
            for _, weight in weights:
                made = torch.ones(weight.shape, dtype=torch.bfloat16, device=device)
                if weight.dim() > 1:
                    made.normal_(std=0.02, generator=chance)
                out.write(made.view(torch.int16).cpu().numpy().data)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(write, range(len(files)), files))
    places = {name: file for file, weights in files.items() for name, _ in weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    print(json.dumps({"made": str(folder), "total_s": round(time.time() - began, 1)}), flush=True)


def spread(args: argparse.Namespace) -> None:
    """Start a process for each GPU, as nbtune's launcher does, and end all when one fails."""
    if args.model in WIDTHS:
        folder = Path(tempfile.gettempdir()) / f"outline-{args.model}-{os.getpid()}"
        outline_folder(folder, args.model)
        args.model = str(folder)
    with tempfile.TemporaryDirectory(prefix="bench-") as meeting:
        usual = {"OMP_NUM_THREADS": "4", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        common = {**usual, **os.environ, MEETING: meeting, "BENCH": json.dumps(vars(args))}
        common["WORLD_SIZE"] = str(args.gpus)
        command = [sys.executable, __file__]
        workers = [
            subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(args.gpus)
        ]
        try:
            while any(worker.poll() is None for worker in workers):
                if any(worker.poll() for worker in workers):
                    break
                time.sleep(0.1)
        finally:
            for worker in workers:
                worker.kill()
        sys.exit(max(abs(worker.wait()) for worker in workers) if any(w.poll() for w in workers) else 0)


# -- nbtune's own, its weights made in place -------------------------------------------------------------------------


def onto(layer: Any, device: Any, *, number: int) -> Any:
    """What `layer.to(device)` does here: weights that hold nothing yet are drawn there, the same in each process."""
    import torch
    from torch import nn

    from nbtune.device.streams import fork_rng

    with fork_rng(device, needed=True):
        for place, module in layer.named_modules():
            for name, p in list(module._parameters.items()):
                if p is None or not p.is_meta:
                    continue
                torch.manual_seed(crc32(f"{number} {place.replace('.base_layer', '')} {name}".encode()))
                made = torch.empty(p.shape, dtype=p.dtype, device=device)
                std = 0.0 if "lora_B" in place else (3 * p.shape[-1]) ** -0.5 if "lora_A" in place else 0.02
                made.fill_(1.0) if made.dim() == 1 else made.normal_(std=std)
                module._parameters[name] = nn.Parameter(made, requires_grad=p.requires_grad)
    return nn.Module.to(layer, device)


def in_four_bits(layer: Any, device: Any, dtype: Any, first: dict[str, Any]) -> None:
    """Make the layer's linear weights as bitsandbytes does while it loads a model.

    Args:
        first: what the first layer has become, by places: rounded once, and copied into every other layer.
    """
    from copy import deepcopy

    import bitsandbytes as bnb
    from torch import nn

    for place, module in list(layer.named_modules()):
        for name, linear in list(module.named_children()):
            if type(linear) is not nn.Linear:
                continue
            size = (linear.in_features, linear.out_features)
            small = bnb.nn.Linear4bit(
                *size, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
            )  # double quantisation is its default
            key = f"{place}.{name}"
            if key not in first:
                drawn = onto(linear, device, number=len(first)).weight.data
                weight: Any = bnb.nn.Params4bit(
                    drawn.cpu() if device.type == "cpu" else drawn,
                    requires_grad=False, quant_type="nf4", compress_statistics=True,
                )  # fmt: skip
                first[key] = weight.to(device)
            small.weight = deepcopy(first[key])
            setattr(module, name, small)


def made_in_place(plan: Any, spec: Any, device: Any) -> Any:
    """Return what `nbtune.models.build` returns of a model on a disk."""
    import torch

    from nbtune.device import torch_dtype
    from nbtune.models import Built, add_adapter, model_facts
    from nbtune.models.accelerate import apply
    from nbtune.models.loading import outline

    base: Any = outline(spec.model, dtype=torch_dtype(plan.dtype), device="meta")
    inner = base.model
    for number, part in enumerate((inner.embed_tokens, inner.norm, base.lm_head)):
        onto(part, device, number=10**6 + number)
    with torch.device(device):
        inner.rotary_emb = type(inner.rotary_emb)(base.config)
    first: dict[str, Any] = {}
    for number, layer in enumerate(inner.layers):
        if plan.weights.four_bit:
            in_four_bits(layer, device, torch_dtype(plan.dtype), first)
        layer.to = partial(onto, layer, number=number)
        if not plan.weights.shards:
            layer.to(device)
    at("layers made")
    base.is_loaded_in_4bit = plan.weights.four_bit
    base.config.use_cache = False
    model = add_adapter(base, spec.adapter, seed=spec.seed)
    at("adapter put on")
    built = Built(model, None, model_facts(spec.model))
    built.patch = apply(model, plan.activations, weights=plan.weights, device=device if plan.weights.shards else None)
    at("blocks taken")
    built.report = built.patch.report.lines()
    left = [name for name, p in model.named_parameters() if p.is_meta]
    assert not left, f"never made: {left[:4]}"
    model.train()
    torch.manual_seed(0)
    return built


class Alone:
    """Nobody wishes anything."""

    def look(self) -> Any:
        from nbtune.train.control import Wishes

        return Wishes()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


def wide(args: argparse.Namespace, ranks: Any) -> dict[str, Any]:
    """Train a model that was made in place, by a run's own functions."""
    from bench_many import spec_of, texts

    from nbtune import data, events, models
    from nbtune import device as machine
    from nbtune.methods import METHODS
    from nbtune.models.outline_facts import counted
    from nbtune.planner import make_plan
    from nbtune.spec import from_mapping
    from nbtune.train.choose_stepper import choose_stepper
    from nbtune.train.distributed import RankedControl
    from nbtune.train.loop import Jobs, LoopOptions, train
    from nbtune.train.loss import UnlessIdle, loss_of
    from nbtune.train.progress import Progress

    spec = from_mapping({**spec_of(args), "model": args.model})
    device = machine.pick(spec.device)
    where = machine.describe(device)
    where = where if ranks is None else ranks.poorest(where)
    facts = counted(models.model_facts(args.model), args.model, spec.adapter)
    sources = data.resolve(spec.data, {"rows": texts(args.windows * args.ctx)})
    tokenizer = models.load_tokenizer(args.model)
    prepared = data.prepare_data(sources, tokenizer, spec=spec, max_len=args.ctx, seed=0)
    plan = make_plan(spec, facts, prepared.facts, where, devices=args.gpus)
    at(f"planned: {plan.weights}, {plan.activations}, {gib(plan.memory.total)} GiB")
    began = time.time()
    built = made_in_place(plan, spec, device)
    made_s = time.time() - began
    method = METHODS[spec.method]
    fused = "head" in built.patch.report.taken
    loss: Any = loss_of(method, options=method.options, fused=fused)
    loss = UnlessIdle(loss) if plan.weights.shards else loss
    stepper = choose_stepper(built, loss, spec=spec, plan=plan, device=device, ranks=ranks, fused=fused)
    batches = data.BatchPlan(
        prepared.train, micro_batch_size=plan.micro_batch_size, sequence_len=plan.sequence_len, seed=0,
        gradient_accumulation_steps=plan.gradient_accumulation_steps, packing=plan.packing,
        per_step=plan.micro_batch_size * plan.gradient_accumulation_steps,
        rank=0 if ranks is None else ranks.rank, ranks=args.gpus, even=plan.weights.shards,
        pad_to_multiple=64, bucket=256,
    )  # fmt: skip
    control = Alone() if ranks is None else RankedControl(ranks, Alone())
    said: list[Any] = []
    options = LoopOptions(
        total_steps=args.steps, learning_rate=1e-4, factor=lambda _: 1.0, eval_every=10**9, checkpoint_every=None,
        checkpoint_seconds=1e9, count=loss.count, several=ranks is not None,
        **({} if ranks is None else {"agree": control.agree}),
    )  # fmt: skip
    jobs = Jobs(
        lambda progress: events.Checkpoint(step=progress.step, folder=""), lambda _: None, lambda *_: (), lambda _: None
    )
    machine.reset_peak(device)
    at("training")
    emit: Any = said.append
    if args.profile:
        from many_profile import profiled

        emit = profiled(said.append, device, 6, 1)
    train(stepper, batches, options, jobs, progress=Progress(), emit=emit, control=control)
    steps = [event for event in said if isinstance(event, events.Step)]
    steady = [e for e in steps[WARM:] if e.tokens == args.rows * args.ctx] or steps[-1:]
    use = machine.memory_use(device)
    return {
        "weights": str(plan.weights), "activations": plan.activations, "micro": plan.micro_batch_size,
        "accumulated": plan.gradient_accumulation_steps, "planned_gib": gib(plan.memory.total),
        "made_s": round(made_s, 1),
        "parameters": plan.parameters, "trained": plan.trainable_parameters, "taken": len(built.patch.report.taken),
        "left": dict(list(built.patch.report.left.items())[:2]),
        "step_s": round(statistics.median(e.seconds for e in steady), 4),
        "tok_s": round(statistics.median(e.tokens / e.seconds for e in steady)), "steady": len(steady),
        "losses": [round(e.loss, 5) for e in steps], "seconds": [round(e.seconds, 3) for e in steps],
        "allocated_gib": gib(use.allocated), "peak_gib": gib(use.peak), "reserved_gib": gib(use.reserved),
    }  # fmt: skip


def gib(count: float) -> float:
    return round(count / 2**30, 2)


# -- torch's own -----------------------------------------------------------------------------------------------------


def stock(args: argparse.Namespace, ranks: Any) -> dict[str, Any]:
    """Full training as torch's documents do it: fp32 weights, gradients and AdamW parted, products in bf16."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers import AutoConfig, AutoModelForCausalLM

    from nbtune import device as machine
    from nbtune.device.streams import synchronize

    device = machine.pick("auto")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.model), dtype=torch.float32)
    mesh = dist.device_mesh.init_device_mesh(device.type, (args.gpus,))
    how: dict[str, Any] = {
        "mesh": mesh, "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
    }  # fmt: skip
    for layer in model.model.layers:
        if args.compile:
            layer.compile()
        fully_shard(layer, **how)
    fully_shard(model, **how)
    model.to_empty(device=device)
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    torch.manual_seed(ranks.rank)
    for p in model.parameters():
        mine = p.detach().to_local()
        mine.fill_(1.0) if mine.dim() == 1 else mine.normal_(std=0.02)
    model.config.use_cache = False
    model.train()
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    rows = args.rows // args.gpus
    machine.reset_peak(device)
    took, losses = [], []
    for _ in range(args.steps):
        ids = torch.randint(3, 1000, (rows, args.ctx)).to(device)
        synchronize(device)
        began = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        took.append(time.perf_counter() - began)
        losses.append(round(float(loss), 4))
    use, step_s = machine.memory_use(device), statistics.median(took[WARM:])
    return {
        "checkpointing": args.checkpointing, "compile": args.compile, "step_s": round(step_s, 4),
        "tok_s": round(args.rows * args.ctx / step_s), "losses": losses, "seconds": [round(x, 3) for x in took],
        "peak_gib": gib(use.peak), "reserved_gib": gib(use.reserved),
    }  # fmt: skip


def main() -> None:
    args = argparse.Namespace(**json.loads(os.environ["BENCH"]))
    from many_links import links

    from nbtune.train.distributed import Ranks

    at("torch is here")
    ranks = Ranks.join(os.environ[MEETING])
    began = time.time()
    told = {"wide": wide, "stock": stock, "links": links}[args.what](args, ranks)
    peaks = [told["peak_gib"]] if ranks is None else ranks.gather(told["peak_gib"])
    if ranks is None or ranks.first:
        row = {"row": args.name, "gpus": args.gpus, "rows": args.rows, "ctx": args.ctx, **told, "peaks_gib": peaks}
        print(json.dumps({**row, "total_s": round(time.time() - began, 1)}), flush=True)
    if ranks is not None:
        ranks.leave()


if __name__ == "__main__":
    main()
