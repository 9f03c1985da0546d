"""What a LoRA's dropout drops is decided by seed, step and micro-step: a resumed run drops the same."""

import dataclasses

import pytest
import torch

from nbtune.data.batching.collate import collate
from nbtune.data.prepare.dataset import Builder
from nbtune.models import Built
from nbtune.models.accelerate import apply
from nbtune.models.cuda_graph_step import TrainStep
from nbtune.spec import AdapterSpec
from nbtune.train import cuda_graph_stepper
from nbtune.train.cuda_graph_stepper import FusedStepper
from nbtune.train.loss import TokenLoss
from nbtune.train.mean_loss import mean_loss
from tests.models.test_accelerate import make

STEPS, CPU = 4, torch.device("cpu")


def stepper(seed: int = 3, dropout: float = 0.2, policy="keep") -> FusedStepper:
    model = make("llama", AdapterSpec(r=4, dropout=dropout))
    patch = apply(model, policy)
    model.train()
    return FusedStepper(Built(model, None, None, patch), weight_decay=0.0, max_grad_norm=1.0, seed=seed, device=CPU)


def batches():
    builder, generator = Builder(["rows"]), torch.Generator().manual_seed(0)
    for number in range(2 * STEPS):
        ids = torch.randint(3, 60, (24,), generator=generator).tolist()
        builder.add(ids, [i > 2 for i in range(24)], 0, number)
    data = builder.build()
    return [collate(data, [i]) for i in range(2 * STEPS)]


def losses(with_: FusedStepper, steps=range(STEPS)) -> list[float]:
    every, out = batches(), []
    for step in steps:
        for micro_step in range(2):
            with_.accumulate(every[2 * step + micro_step], denominator=42, step=step, micro_step=micro_step)
        out.append(float(with_.update(1e-2)[0]))
    return out


def test_the_same_seed_drops_the_same_whatever_torchs_state_is():
    torch.manual_seed(0)
    first = losses(stepper())
    torch.manual_seed(1)
    again = stepper()
    before = torch.random.get_rng_state()
    assert losses(again) == first
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing of the user's is drawn
    assert losses(stepper(seed=4)) != first
    assert losses(stepper(dropout=0.0)) != first


@pytest.mark.parametrize("policy", ["selective", "recompute"])
def test_what_is_computed_again_drops_the_same(policy):
    assert losses(stepper(policy=policy)) == pytest.approx(losses(stepper()), rel=1e-6)


def test_a_resumed_run_drops_what_the_whole_one_does():
    whole = losses(stepper())
    before, after = stepper(), stepper()
    begun = losses(before, range(2))
    with torch.no_grad():
        for old, new in zip(before._step.parameters, after._step.parameters, strict=True):
            new.copy_(old)
    after.load_state_dict(before.state_dict())
    assert begun + losses(after, range(2, STEPS)) == whole


def test_an_evaluation_drops_nothing_and_leaves_the_model_dropping():
    after = stepper(dropout=0.5)
    losses(after)  # from here on what is dropped makes a difference
    model, loss, held = after._step.model, TokenLoss(fused=True), batches()[:2]
    model.eval()
    with torch.no_grad():
        whole = sum(float(loss(model, batch, denominator=42, device=CPU).loss) for batch in held)
    model.train()
    assert mean_loss(model, loss, lambda: held, device=CPU).loss == pytest.approx(whole, rel=1e-6)
    assert model.training
    with torch.no_grad():
        dropped = sum(float(loss(model, batch, denominator=42, device=CPU).loss) for batch in held)
    assert abs(dropped - whole) > 1e-4


def test_a_step_without_a_seed_draws_from_torchs_state():
    model = make("llama", AdapterSpec(r=4, dropout=0.5))
    step = TrainStep(model, apply(model))
    model.train()
    ids = torch.arange(3, 27)[None]
    torch.manual_seed(0)
    values = [float(step.accumulate({"input_ids": ids, "labels": ids})) for _ in range(2)]
    torch.manual_seed(0)
    assert values[0] != values[1]
    assert float(step.accumulate({"input_ids": ids, "labels": ids})) == values[0]


def test_recorded_steps_are_for_models_whose_own_blocks_do_all_the_dropping(monkeypatch):
    from nbtune.spec import RunSpec

    monkeypatch.setattr(cuda_graph_stepper, "replayable", lambda device: True)
    spec, one = RunSpec(data="rows"), stepper()
    built = Built(one._step.model, None, None, apply(make("llama")))
    assert not cuda_graph_stepper.suits(built, spec, "bf16", CPU)  # the other model's patch knows nothing of these
    model = make("llama", AdapterSpec(r=4, dropout=0.1))
    built = Built(model, None, None, apply(model))
    assert cuda_graph_stepper.suits(built, spec, "bf16", CPU)
    assert not cuda_graph_stepper.suits(built, spec, "fp16", CPU)
    assert not cuda_graph_stepper.suits(dataclasses.replace(built, patch=None), spec, "bf16", CPU)
    model.add_module("more", torch.nn.Dropout(0.1))
    assert not cuda_graph_stepper.suits(built, spec, "bf16", CPU)
