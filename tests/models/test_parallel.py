"""Accelerated models on two processes (DDP, FSDP2) give the losses and gradients of one; torch.compile around them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from nbtune.models.accelerate import apply
from nbtune.spec import AdapterSpec, Placement
from tests.models.test_accelerate import LORA, assert_equal, batch, loss_and_gradients, make
from tests.support.every import every

FULL = AdapterSpec(type="full")
PARTS = [batch(seed=5), batch(length=9, seed=6)]
TRAINED = sum(int((b["labels"][:, 1:] != -100).sum()) for b in PARTS)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # type: ignore[no-any-return]


def _work(rank: int, place: str, how: str, adapter: AdapterSpec, family: str) -> None:
    """One of two processes: its own half of the batch; process 0 saves summed losses and gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    try:
        model: Any = make(family, adapter)
        patch = apply(model, weights=Placement(parts=2 if how == "fsdp2" else 1))
        assert sum(n.startswith("layers.") for n in patch.report.taken) == 2, patch.report
        wrapped = _wrap(model, how)
        # both average over processes: a loss normalised by the tokens of all comes out too small
        times = 2 if how == "ddp" else _too_small()
        losses = [wrapped(**PARTS[rank], num_items_in_batch=TRAINED, use_cache=False).loss for _ in range(2)]
        assert _nodes(losses[1].grad_fn, "LayerFunctionBackward") == 2
        losses[1].backward()
        total = losses[0].detach().clone()
        dist.all_reduce(total)
        named = {n.removeprefix("module."): p for n, p in wrapped.named_parameters()}
        gradients = {n: times * _whole(p.grad) for n, p in named.items() if p.grad is not None}
        if rank == 0:
            torch.save((total.item(), gradients), f"{place}/result.pt")
    finally:
        dist.destroy_process_group()
    os._exit(0)  # see `Ranks.leave`


def _too_small() -> float:
    """By what FSDP2 makes a gradient of two processes too small: 2, but 1 in torch 2.8, which over gloo adds up."""
    from torch.distributed.fsdp import fully_shard

    probe = nn.Linear(1, 2, bias=False)
    fully_shard(probe, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    probe(torch.ones(1, 1)).sum().backward()
    assert probe.weight.grad is not None
    return 2 / _whole(probe.weight.grad)[0].item()


def _nodes(node: Any, name: str) -> int:
    """How many nodes of an autograd graph are called so."""
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return sum(type(n).__name__ == name for n in seen)


def _wrap(model: Any, how: str) -> nn.Module:
    if how == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for module in [m for m in model.modules() if type(m).__name__.endswith("DecoderLayer")]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = [p for p in model.parameters() if hasattr(p, "full_tensor")]
    assert isinstance(model, FSDPModule)
    assert len(sharded) == len(list(model.parameters()))
    assert every(p.to_local().numel() <= p.numel() // 2 + p.shape[-1] for p in sharded)
    return model


@pytest.mark.parametrize(
    ("how", "adapter", "family"),
    [
        pytest.param("ddp", LORA, "llama", id="ddp-lora", marks=pytest.mark.slow),
        pytest.param("ddp", FULL, "llama", id="ddp-full", marks=pytest.mark.slow),
        pytest.param("fsdp2", LORA, "qwen3", id="fsdp2-lora"),
        pytest.param("fsdp2", FULL, "qwen2", id="fsdp2-full", marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one(how: str, adapter: AdapterSpec, family: str, tmp_path: Path) -> None:
    mp.spawn(_work, args=(str(tmp_path), how, adapter, family), nprocs=2)
    found = torch.load(tmp_path / "result.pt", weights_only=True)
    parts = [{**b, "num_items_in_batch": TRAINED} for b in PARTS]
    assert_equal(found, loss_and_gradients(make(family, adapter), *parts), 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_torch_compile_on_top(family: str) -> None:
    model = make(family)
    stock = loss_and_gradients(model, batch())
    apply(model)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager")
    assert_equal(loss_and_gradients(compiled, batch()), _named_like(compiled, stock), 2e-5)


def _named_like(compiled: nn.Module, found: tuple[float, dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    prefix = "_orig_mod."
    names = {n.removeprefix(prefix): n for n, _ in compiled.named_parameters()}
    return found[0], {names[n]: g for n, g in found[1].items()}
