"""What a plan says a model takes is what it takes: counted on a step of the embedded model."""

from __future__ import annotations

import gc

import pytest
import torch

from nbtune import models
from nbtune.data.batching.collate import collate
from nbtune.data.prepare.dataset import Builder
from nbtune.models.memory_estimate import MemoryPlan, MemoryPolicy, estimate
from nbtune.spec import AdapterSpec, Placement
from nbtune.train.loss import TokenLoss
from nbtune.train.stepper import Stepper

CPU, ROWS, LENGTH = torch.device("cpu"), 4, 256


def alive() -> dict[int, int]:
    """Bytes of all tensors' memory that Python knows of, by address."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}


def step(policy: MemoryPolicy, kind: str) -> tuple[MemoryPlan, MemoryPlan]:
    """What is planned, and what is there, of one step."""
    adapter = AdapterSpec.model_validate({"type": kind, "r": 8})
    built = models.build("nbtune/tiny", adapter=adapter, dtype=torch.float32, device=CPU, policy=policy, seed=0)
    trained = [p for p in built.model.parameters() if p.requires_grad]
    stepper = Stepper(
        built.model.train(), TokenLoss(fused=True), torch.optim.AdamW(trained), max_grad_norm=1.0, seed=0, device=CPU
    )
    builder = Builder(["rows"])
    for number in range(ROWS):
        builder.add(list(range(3, 3 + LENGTH)), [False] * (LENGTH - 8) + [True] * 8, 0, number)
    batch = collate(builder.build(), list(range(ROWS)))
    before = alive()
    waits = TokenLoss(fused=True)(built.model, batch, denominator=32, device=CPU)
    kept = sum(size for place, size in alive().items() if place not in before)
    del waits
    stepper.accumulate(batch, denominator=32, step=0, micro_step=0)
    gradients = sum(p.grad.nbytes for p in trained)
    stepper.update(1e-3)
    moments = [state[name] for state in stepper.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    planned = estimate(
        built.facts,
        adapter,
        weights=Placement(format="32bit"),
        activations=policy,
        micro_batch_size=ROWS,
        sequence_len=LENGTH,
        dtype="fp32",
        device="cpu",
    )
    own_copies = 0 if kind == "full" else sum(p.nbytes for p in trained)
    there = {"gradients": gradients, "optimizer": sum(m.nbytes for m in moments), "activations": kept}
    return planned, planned.model_copy(update={**there, "adapter": own_copies})


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_is_trained_takes_what_is_planned(kind: str) -> None:
    planned, there = step("keep", kind)
    assert planned.model_copy(update={"activations": 0}) == there.model_copy(update={"activations": 0})


def test_what_waits_for_the_backward_is_what_is_planned() -> None:
    """Between two policies, so that what the block at work needs, which is in none of them, drops out."""
    (planned, there), (less_planned, less_there) = step("keep", "lora"), step("recompute", "lora")
    ratio = (planned.activations - less_planned.activations) / (there.activations - less_there.activations)
    assert 0.6 < ratio < 1.4
