"""Whose rounding is it? bf16 losses of stock back ends, of stock that sums LoRA in fp32, and of nbtune, on a CPU.

    python tests/bench_losses.py SEED [STEPS]

All start from the same numbers and see the same rows (a chain of words that can be learnt). One JSON line: the mean of
the last 20 losses of each, and the mean absolute difference of each two.
"""

from __future__ import annotations

import json
import sys
from itertools import combinations
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

from nbtune.models.accelerate import apply
from nbtune.models.adapters import add_adapter
from nbtune.spec import AdapterSpec

ROWS, LENGTH, WORDS = 4, 64, 512
KINDS = ("fp32", "stock sdpa", "stock eager", "stock math", "fp32 sum", "fp32 sum eager", "ours")


def batches(seed: int, steps: int) -> list[Tensor]:
    following = torch.randint(3, WORDS, (WORDS, 2), generator=torch.Generator().manual_seed(4 + seed))
    made = []
    for step in range(steps):
        chance = torch.Generator().manual_seed(1000 * seed + 100 + step)
        columns = [torch.randint(3, WORDS, (ROWS, 1), generator=chance)]
        second = (torch.rand(ROWS, LENGTH, generator=chance) < 0.2).long()
        for at in range(LENGTH - 1):
            columns.append(following[columns[-1][:, 0]].gather(1, second[:, at : at + 1]))
        made.append(torch.cat(columns, 1))
    return made


def make(kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=WORDS, tie_word_embeddings=True, attn_implementation="eager" if "eager" in kind else "sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16).to(torch.float32 if kind == "fp32" else torch.bfloat16)
    return add_adapter(model, AdapterSpec(r=16), seed=seed).train()


def summed_in_fp32(layer: Any, x: Tensor) -> Tensor:
    """W x + s B A x with one rounding at the end; A x is rounded, as nbtune's is."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight * layer.scaling["default"]
    small = (x @ a.to(x.dtype).t()).float() @ b.to(x.dtype).float().t()
    return (x.float() @ layer.base_layer.weight.float().t() + small).to(x.dtype)


def train(kind: str, seed: int, rows: list[Tensor]) -> Tensor:
    model = make(kind, seed)
    if "fp32 sum" in kind:
        for layer in model.modules():
            if hasattr(layer, "lora_A"):
                layer.forward = MethodType(summed_in_fp32, layer)
    if kind == "ours":
        assert not apply(model).report.left
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    found = []
    backends = [SDPBackend.MATH] if kind == "stock math" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends):
        for ids in rows:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


def main(seed: int, steps: int) -> None:
    torch.set_num_threads(1)
    rows = batches(seed, steps)
    losses = {kind: train(kind, seed, rows) for kind in KINDS}
    ends = {kind: round(found[-20:].mean().item(), 4) for kind, found in losses.items()}
    gaps = {f"{a} | {b}": round((losses[a] - losses[b]).abs().mean().item(), 5) for a, b in combinations(KINDS, 2)}
    print(json.dumps({"seed": seed, "end": ends, "gaps": gaps}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
