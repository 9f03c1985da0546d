"""Frozen weights in 8 bits: a step, where its time goes, its kernels' tiles, and how near a layer's LoRA gradients are.

    python tests/gpu/bench_fp8.py MODEL [--rows 4 --length 2048] [--what steps,profile,tiles,gradients]

`steps`: the step as it is (`late`), with LoRA's shares as passes of their own (`passes`), in turn in
one process. `gradients`: of single layers, given the same input and the same gradient of their
output, beside 16-bit products on the same rounded weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

BEGAN = time.time()
UNMASKED = {"attention_mask": None}  # what stands for a mask in an accelerated model means nothing to a stock layer
TILES = ((64, 128, 8), (64, 64, 4), (32, 128, 4), (64, 128, 4), (128, 64, 8), (32, 256, 8), (16, 256, 4), (64, 256, 8))


def say(**figures: object) -> None:
    print(json.dumps({"after_s": round(time.time() - BEGAN, 1), **figures}), flush=True)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(model: Any, rows: list[torch.Tensor], warm: int, steps: int) -> dict[str, Any]:
    took, losses = [], []
    for number in range(warm + steps):
        x = rows[number % len(rows)]
        synchronize()
        began = time.perf_counter()
        loss = model.train_step(input_ids=x, labels=x, lr=1e-4)
        synchronize()
        took.append(time.perf_counter() - began)
        losses.append(round(float(loss), 4))
    middle = statistics.median(took[warm:])
    return {"median_s": round(middle, 5), "least_s": round(min(took[warm:]), 5),
            "tokens_s": round(rows[0].numel() / middle), "all_s": [round(t, 4) for t in took],
            "losses": losses}  # fmt: skip


def again(model: Any) -> None:
    """Forget what was recorded."""
    model._step = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def steps(model: Any, rows: list[torch.Tensor], args: argparse.Namespace) -> None:
    from nbtune.models.accelerate import fp8_linear, mlp_half

    usual = fp8_linear.applies
    for name in args.variants.split(","):
        again(model)
        fp8_linear.applies = mlp_half.applies = usual if name != "passes" else lambda x, rank: False
        say(steps=name, **timed(model, rows, 3, args.steps))
    fp8_linear.applies = mlp_half.applies = usual


def profile(model: Any, rows: list[torch.Tensor], args: argparse.Namespace) -> None:
    timed(model, rows, 3, 1)
    kinds = [torch.profiler.ProfilerActivity.CUDA if torch.cuda.is_available() else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as seen:
        timed(model, rows, 0, 2)
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in seen.events():
        length = event.device_time if torch.cuda.is_available() else event.cpu_time
        spent[event.name] += length / 2
        calls[event.name] += 1
    say(kernels_ms=round(sum(spent.values()) / 1000, 2),
        most=[[name[:110], round(us / 1000, 3), calls[name] // 2] for name, us in spent.most_common(40)])  # fmt: skip


def microseconds(work: Callable[[], object], count: int = 20) -> float:
    work()
    synchronize()
    began = time.perf_counter()
    for _ in range(count):
        work()
    synchronize()
    return round((time.perf_counter() - began) / count * 1e6, 1)


def tiles(model: Any, rows: list[torch.Tensor], args: argparse.Namespace) -> None:
    """The kernels of `lora_epilogues` by their tiles."""
    from nbtune_kernels import act_mul
    from nbtune_kernels.fp8 import quantise_rows, transposed

    from nbtune.models.accelerate import lora_epilogues, triton_epilogues

    t, i, h, r = rows[0].numel(), model.config.intermediate_size, model.config.hidden_size, 16
    like = {"dtype": torch.bfloat16, "device": rows[0].device}
    both, out, xa = (torch.randn(t, n, **like) for n in (2 * i + 64, i, 2 * r))
    beside, y, residual, below = (torch.randn(n, k, **like) for n, k in ((2 * i, 2 * r), (t, h), (t, h), (r, i)))
    gate, up = both[:, :i], both[:, i : 2 * i]
    columns = torch.rand(2 * i, device=rows[0].device)
    say(addmm_gate_up_us=microseconds(lambda: both[:, : 2 * i].addmm_(xa, beside.t(), alpha=1e-3)),
        act_us=microseconds(lambda: act_mul(gate, up, out=out)),
        addmm_dh_us=microseconds(lambda: out.addmm_(xa[:, :r], below, alpha=1e-3)),
        addmm_down_us=microseconds(lambda: y.addmm_(xa[:, :r], beside[:h, :r].t(), alpha=1e-3)),
        add_us=microseconds(lambda: torch.add(residual, y)),
        quantise_us=[microseconds(lambda n=n: quantise_rows(both[:, :n])) for n in (h, i, 2 * i)],
        by_columns_us=[
            microseconds(lambda n=n: quantise_rows(both[:, :n], columns[:n])) for n in (h, i, 2 * i)])  # fmt: skip
    if not triton_epilogues.applies(gate, r):
        return
    codes = torch.zeros((2 * i, h), dtype=torch.uint8, device=rows[0].device).view(torch.float8_e4m3fn)
    turned = codes.view(h, 2 * i).clone()
    say(turn_gate_up_us=microseconds(lambda: transposed(codes, turned)), **errors(t, i, h, r, like))
    for bt, bn, warps in (
        (64, 128, 8),
        (64, 64, 4),
        (32, 128, 4),
        (64, 128, 4),
        (128, 64, 8),
        (32, 256, 8),
        (16, 256, 4),
        (64, 256, 8),
    ):
        tile = {"BT": bt, "BN": bn, "num_warps": warps}
        lora_epilogues._ACT = lora_epilogues._SUM = tile
        say(tile=tile, act_us=microseconds(lambda: lora_epilogues.act_with_lora(gate, up, xa, beside, "silu", out)),
            sum_us=microseconds(
                lambda: lora_epilogues.sum_with_lora(residual, y, xa[:, :r], beside[:h, :r], 1e-3)))  # fmt: skip
        both.normal_()
        y.normal_()


def errors(t: int, i: int, h: int, r: int, like: dict[str, Any]) -> dict[str, float]:
    """How far the kernels are from passes of their own, by the largest of what these make."""
    from nbtune_kernels import act_mul

    from nbtune.models.accelerate import lora_epilogues

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return round(float((a.float() - b.float()).abs().max() / b.float().abs().max()), 6)

    both, xa, y, residual = (torch.randn(t, n, **like) for n in (2 * i, 2 * r, h, h))
    beside = torch.zeros(2 * i, 2 * r, **like)
    beside[:i, :r].normal_()
    beside[i:, r:].normal_()
    whole = torch.addmm(both, xa, beside.t())
    known, out = act_mul(whole[:, :i], whole[:, i:]), torch.empty_like(both[:, :i])
    lora_epilogues.act_with_lora(both[:, :i], both[:, i:], xa, beside, "silu", out)
    truth = residual + 0.5 * torch.addmm(y, xa[:, :r], beside[:h, :r].t())
    found = {"gate_up": apart(both, whole), "h": apart(out, known)}
    found["sum"] = apart(lora_epilogues.sum_with_lora(residual, y, xa[:, :r], beside[:h, :r], 0.5), truth)
    return found


def gradients(model: Any, rows: list[torch.Tensor], args: argparse.Namespace) -> None:
    from nbtune.models.accelerate.cpu_offload import present

    inner, patch = model.model, model.built.patch
    layers = inner.get_base_model().model.layers
    seen: dict[int, tuple[Any, Any]] = {}
    chosen = sorted({0, 1, len(layers) // 2, len(layers) - 1})
    handles = [
        layers[i].register_forward_pre_hook(
            lambda module, given, named, i=i: seen.__setitem__(i, (given, named)), with_kwargs=True
        )
        for i in chosen
    ]
    with torch.no_grad():
        inner(input_ids=rows[0], labels=rows[0])
    for handle in handles:
        handle.remove()
    found = {}
    for i in chosen:
        given, named = seen[i]
        x = given[0].detach()
        torch.manual_seed(i)
        dout = torch.randn_like(x) * 1e-3
        params = [p for p in layers[i].parameters() if p.requires_grad]

        def of(
            forward: Callable[..., Any], x: Any = x, named: Any = named, dout: Any = dout, params: Any = params
        ) -> Any:
            leaf = x.clone().requires_grad_()
            out = forward(leaf, **named)
            out = out[0] if isinstance(out, tuple) else out
            return [g.float().flatten() for g in torch.autograd.grad(out, [leaf, *params], dout)], out.detach().float()

        ours, out = of(layers[i])
        with present(patch.layers[i].groups()):
            truth, stock = of(lambda *a, layer=layers[i], **k: type(layer).forward(layer, *a, **k | UNMASKED))
        cosine = torch.nn.functional.cosine_similarity
        each = [round(float(cosine(a, b, 0)), 5) for a, b in zip(ours, truth, strict=True)]
        lora = float(cosine(torch.cat(ours[1:]), torch.cat(truth[1:]), 0))
        found[i] = {
            "lora": round(lora, 5),
            "least": min(each[1:]),
            "dx": each[0],
            "out": round(float(cosine(out.flatten(), stock.flatten(), 0)), 5),
        }
    say(cosine_of_a_layer=found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--variants", default="late,passes,late", help="of `steps`")
    parser.add_argument("--what", default="steps,profile,tiles,gradients")
    parser.add_argument("--gate", default="", help="a file that is waited for, between loading and the first step")
    args = parser.parse_args()
    from nbtune.models import load_trainable

    model = load_trainable(
        args.model, quant="fp8", micro_batch_size=args.rows, sequence_len=args.length, activations="keep"
    )
    say(loaded=True)
    while args.gate and not os.path.exists(args.gate):
        time.sleep(0.02)
    device = next(p.device for p in model.parameters() if p.requires_grad)
    chance = torch.Generator().manual_seed(1)
    shape = (args.rows, args.length)
    rows = [torch.randint(3, model.config.vocab_size, shape, generator=chance).to(device) for _ in range(4)]
    for what in args.what.split(","):
        {"steps": steps, "profile": profile, "tiles": tiles, "gradients": gradients}[what](model, rows, args)
    use = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    say(reserved_gib=round(use / 2**30, 2))


if __name__ == "__main__":
    main()
