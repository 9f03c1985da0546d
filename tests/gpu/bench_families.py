"""One training step of a published shape, by nbtune or by stock transformers, on one GPU; prints a JSON line.

    python tests/gpu/bench_families.py gemma2-9b nbtune
    python tests/gpu/bench_families.py falcon-7b hf --steps 3
    python tests/gpu/bench_families.py qwen3-30b-a3b-8 nbtune --no-graphs
    python tests/gpu/bench_families.py qwen3-30b-a3b nbtune --quant nf4 --policy recompute

Random weights, LoRA r = 16 on all linear layers and experts, 4 rows of 2,048 tokens; nbtune's own step (recorded)
beside a plain loop of stock transformers and peft that computes its layers again. Medians; the device is awaited after
each step.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from typing import Any

import torch
from torch import Tensor

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2-9b": ("gemma2", {
        "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192,
        "sliding_window": 4096, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }),
    "falcon-7b": ("falcon", {
        "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "vocab_size": 65024,
    }),
    "mpt-7b": ("mpt", {"d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 2048, "vocab_size": 50432}),
    "neox-6.9b": ("gpt_neox", {
        "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 50432,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    }),
    "olmo2-7b": ("olmo2", {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 100352,
    }),
    "qwen3-30b-a3b-8": ("qwen3_moe", {  # 8 of its 48 layers; LoRA on the experts too: 107 M
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 8,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "vocab_size": 151936, "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }),
    "tiny-moe": ("qwen3_moe", {
        "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "vocab_size": 512, "max_position_embeddings": 4096,
    }),
    "llama-8b": ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    }),
}  # fmt: skip
SHAPES["qwen3-30b-a3b"] = ("qwen3_moe", {**SHAPES["qwen3-30b-a3b-8"][1], "num_hidden_layers": 48})  # all: 642 M trained


def model_of(shape: str, device: torch.device, quant: str = "none") -> Any:
    """A model of that shape with random weights, rounded where that is asked for, and a LoRA."""
    from transformers import AutoConfig

    from nbtune.models.adapters import add_adapter
    from nbtune.models.loading import from_config
    from nbtune.spec import AdapterSpec

    kind, fields = SHAPES[shape]
    config = AutoConfig.for_model(kind, **fields, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    for name, value in list(vars(config).items()):
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = from_config(config, dtype=torch.bfloat16, device=device)
    model.config.use_cache = False
    if quant == "nf4":
        round_weights(model)
    return add_adapter(model, AdapterSpec(type="qlora" if quant == "nf4" else "lora", r=16), seed=0).train()


def round_weights(model: Any) -> None:
    """Round linear layers by bitsandbytes and experts as nbtune does, where they are: there is no file to load."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    from nbtune.models.experts.stacks import round_stacks

    model.requires_grad_(False)
    round_stacks(model, "nf4")
    head = model.get_output_embeddings()
    for name, old in list(model.named_modules()):
        if type(old) is not torch.nn.Linear or old is head:
            continue
        new = Linear4bit(old.in_features, old.out_features, old.bias is not None, old.weight.dtype, quant_type="nf4")
        new.weight = Params4bit(old.weight.data, requires_grad=False, quant_type="nf4", module=new)
        new.bias = old.bias
        model.set_submodule(name, new.to(old.weight.device))
    model.is_loaded_in_4bit = model.is_quantized = True
    torch.cuda.empty_cache()


def stepper(model: Any, who: str, policy: Any, graphs: bool = True) -> tuple[Any, list[str]]:
    """A function of ids that takes a step and returns its loss, and what was accelerated."""
    if who == "nbtune":
        from nbtune.models.accelerate import apply
        from nbtune.models.cuda_graph_step import TrainStep

        patch = apply(model, policy)
        step = TrainStep(model, patch, graphs=graphs)

        def ours(ids: Tensor) -> Tensor:
            loss = step.accumulate({"input_ids": ids, "labels": ids}, first=True)
            step.update(1e-4)
            return loss

        return ours, patch.report.lines()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def stock(ids: Tensor) -> Tensor:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()  # type: ignore[no-any-return]

    return stock, []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("who", choices=("nbtune", "hf"))
    parser.add_argument("--policy", default="keep")
    parser.add_argument(
        "--no-graphs", dest="graphs", action="store_false", help="launch each kernel, as for stock layers"
    )
    parser.add_argument("--quant", default="none", choices=("none", "nf4"))
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3)
    args = parser.parse_args()
    device = torch.device("cuda", 0)
    model = model_of(args.shape, device, args.quant)
    step, lines = stepper(model, args.who, args.policy, args.graphs)
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    batches = [torch.randint(3, vocabulary, (args.rows, 2048), generator=generator).to(device) for _ in range(4)]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    times, losses = [], []
    for i in range(args.warmup + args.steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        loss = step(batches[i % 4])
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        losses.append(round(float(loss), 4))
    middle = sorted(times[args.warmup :])[args.steps // 2]
    peak = torch.cuda.max_memory_allocated() / 2**30
    row = {"shape": args.shape, "impl": args.who, "policy": args.policy, "quant": args.quant}
    row |= {"step_s": round(middle, 4), "tok_s": round(args.rows * 2048 / middle)}
    row |= {"reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2)}
    print(json.dumps({**row, "peak_gib": round(peak, 2), "losses": losses}), *lines, sep="\n    ")


if __name__ == "__main__":
    main()
