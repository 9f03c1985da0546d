"""Which piece of the acceleration moves losses: stock with one piece of ours, over seeds and attention back ends.

    python tests/bench_loss_pieces.py MODEL_DIR --seeds 0,1,2 --steps 200 --lr 3e-4

On a random chain of words that can be learnt, from the same start for all variants of a seed. Prints a JSON line a
pair: the mean absolute difference of its losses, for each seed. A variant is an attention (`sdpa`, `eager`, `math`, on
a GPU `cudnn`, `flash`), `ours`, one piece of ours on stock (`norm`, `rope`, `act`, `lora`, `head`), or `fp32`.
`auto-…`: under autocast, as trainers run it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import nbtune_kernels as nk
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nbtune.device import pick
from nbtune.models import build
from nbtune.models.accelerate import Patch, Report, apply
from nbtune.models.accelerate.lm_head import NormFunction
from nbtune.models.accelerate.norms import find_norm
from nbtune.models.accelerate.patch import _take_head
from nbtune.spec import AdapterSpec

BACK_ENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
}


def batches(vocabulary: int, steps: int, shape: tuple[int, int], seed: int, device: torch.device) -> Iterator[Tensor]:
    """Chains in which each word has two followers, one four times as likely as the other."""
    rows, length = shape
    follow = torch.randint(3, vocabulary, (vocabulary, 2), generator=torch.Generator().manual_seed(4 + 1000 * seed))
    for step in range(steps):
        generator = torch.Generator().manual_seed(100 + step + 100_000 * seed)
        columns = [torch.randint(3, vocabulary, (rows, 1), generator=generator)]
        rare = (torch.rand(rows, length, generator=generator) < 0.2).long()
        for t in range(length - 1):
            columns.append(follow[columns[-1][:, 0]].gather(1, rare[:, t : t + 1]))
        yield torch.cat(columns, 1).to(device)


class Act(torch.autograd.Function):
    """silu(gate) * up by our kernels."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nk.act_mul(gate, up)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = (t.contiguous().clone() for t in ctx.saved_tensors)
        nk.act_mul_backward(dh.contiguous(), gate, up, out_dgate=gate, out_dup=up, need_h=False)
        return gate, up


class Rope(torch.autograd.Function):
    """Rotary of `[B, H, S, D]` by our kernel."""

    @staticmethod
    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        q, k = (t.transpose(1, 2).contiguous().clone() for t in (q, k))
        nk.rope(q, k, cos, sin, inplace=True, inverse=inverse, rotary_dim=cos.shape[-1])
        return q.transpose(1, 2), k.transpose(1, 2)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return Rope.turn(q, k, cos, sin, False)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *Rope.turn(dq, dk, *ctx.saved_tensors, True), None, None


class Lora(torch.autograd.Function):
    """[x, xA'] [W, sB]': one product and one rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        flat, a, sb = x.reshape(-1, x.shape[-1]), a.to(x.dtype), (b * scaling).to(x.dtype)
        xa = flat @ a.t()
        ctx.save_for_backward(flat, w, a, sb, xa)
        ctx.scaling, ctx.shape = scaling, x.shape
        return (torch.cat([flat, xa], 1) @ torch.cat([w, sb], 1).t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        flat, w, a, sb, xa = ctx.saved_tensors
        dy = dy.reshape(-1, dy.shape[-1])
        dxa = dy @ sb
        dx = torch.cat([dy, dxa], 1) @ torch.cat([w, a], 0)
        da, db = dxa.float().t() @ flat.float(), ctx.scaling * (dy.float().t() @ xa.float())
        return dx.view(ctx.shape), None, da, db, None


def put_norm(module: Any) -> None:
    if type(module).__name__ == "LlamaRMSNorm":
        norm = find_norm(module, module.weight.shape[0])
        module.forward = lambda h: NormFunction.apply(norm, h, module.weight)


def put_act(module: Any) -> None:
    if type(module).__name__ == "LlamaMLP":
        module.forward = lambda h: module.down_proj(Act.apply(module.gate_proj(h), module.up_proj(h)))


def put_lora(module: Any) -> None:
    if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
        a, b, scaling = module.lora_A["default"], module.lora_B["default"], module.scaling["default"]
        module.forward = lambda h: Lora.apply(h, module.base_layer.weight, a.weight, b.weight, scaling)


PUT: dict[str, Callable[[Any], None]] = {"norm": put_norm, "act": put_act, "lora": put_lora}


@contextmanager
def our_rope() -> Iterator[None]:
    """Llama's rotary by our kernel: this script's own process only."""
    from transformers.models.llama import modeling_llama

    stock = modeling_llama.apply_rotary_pos_emb
    modeling_llama.apply_rotary_pos_emb = lambda q, k, cos, sin, *_, **__: Rope.apply(q, k, cos, sin)
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = stock


def losses(args: argparse.Namespace, variant: str, seed: int) -> Tensor:
    """The loss of each step, `[steps]`."""
    device, name = pick(), variant.removeprefix("auto-")
    dtype = torch.float32 if name == "fp32" else torch.bfloat16
    built = build(
        args.model, adapter=AdapterSpec(), dtype=dtype, device=device, seed=7 + seed, accelerate=False, tokenizer=False
    )
    model: Any = built.model.train()
    with ExitStack() as stack:
        default = "cudnn" if device.type == "cuda" and name not in ("fp32", "sdpa", "eager") else name
        if default in BACK_ENDS or name in BACK_ENDS:
            stack.enter_context(sdpa_kernel(BACK_ENDS[name if name in BACK_ENDS else default]))
        if name == "ours":
            assert not apply(model).report.left
        elif name == "eager":
            model.base_model.model.set_attn_implementation("eager")
        elif name == "rope":
            stack.enter_context(our_rope())
        elif name == "head":
            _take_head(model.base_model.model, model.base_model.model.model, Patch(Report(), "keep"))
        for module in model.modules():
            PUT.get(name, lambda _: None)(module)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr)
        out = []
        vocabulary = min(2000, built.facts.vocab_size)
        for ids in batches(vocabulary, args.steps, (args.batch, args.ctx), seed, device):
            with torch.autocast(device.type, torch.bfloat16, enabled=variant != name):  # else it keeps copies
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            out.append(loss.detach())
    return torch.stack(out).float().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-4)
    every = "sdpa,eager,math,auto-sdpa,ours,norm,rope,act,lora,head,fp32"
    parser.add_argument("--variants", default=every)
    args = parser.parse_args()
    seeds = [int(s) for s in args.seeds.split(",")]
    found = {v: [losses(args, v, s) for s in seeds] for v in args.variants.split(",")}
    for a, b in itertools.combinations(found, 2):
        each = [round((x - y).abs().mean().item(), 5) for x, y in zip(found[a], found[b], strict=True)]
        print(json.dumps({"pair": [a, b], "mean": round(sum(each) / len(each), 5), "seeds": each}), flush=True)


if __name__ == "__main__":
    main()
