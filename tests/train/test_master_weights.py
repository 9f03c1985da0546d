"""Small updates of 16-bit weights are not lost, and a run on such weights goes on exactly."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from nbtune.train.master_weights import Masters
from nbtune.train.optimizer import make_optimizer
from tests.support.every import every

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def layer(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4).to(dtype)


def backward(model: nn.Linear, rows: int = 3, seed: int = 1) -> None:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    model(x.to(model.weight.dtype)).float().square().mean().backward()


@HALVES
def test_updates_below_the_last_place_add_up(dtype: torch.dtype) -> None:
    model = nn.Linear(1, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.fill_(1.0)
    masters = Masters([model.weight])
    optimizer = torch.optim.SGD(masters.parameters, lr=1e-5)  # the last place of 1.0 is 2^-7 or 2^-10
    masters.follow(optimizer)
    for _ in range(2000):
        model(torch.ones(1, 1, dtype=dtype)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert masters.parameters[0].item() == pytest.approx(0.98, abs=1e-4)
    assert model.weight.item() == torch.tensor(0.98).to(dtype).item()


@HALVES
def test_gradients_of_micro_batches_are_summed_in_fp32(dtype: torch.dtype) -> None:
    model, alone = layer(dtype), layer(dtype)
    masters = Masters(list(model.parameters()))
    truth = [torch.zeros(p.shape) for p in alone.parameters()]
    for seed in range(5):
        backward(model, seed=seed)
        backward(alone, seed=seed)
        for total, parameter in zip(truth, alone.parameters(), strict=True):
            total += parameter.grad.float()
            parameter.grad = None
    assert every(p.grad is None for p in model.parameters())
    for total, master in zip(truth, masters.parameters, strict=True):
        assert torch.equal(total, master.grad)


def test_parameters_in_fp32_stand_for_themselves() -> None:
    model = layer(torch.bfloat16)
    model.bias.data = model.bias.data.float()
    masters = Masters([model.weight, model.bias])
    assert masters.parameters[1] is model.bias
    assert masters.parameters[0].dtype == torch.float32
    assert Masters.needed([model.weight, model.bias])
    assert not Masters.needed([model.bias])


def test_what_was_saved_goes_on_to_the_bit() -> None:
    def some(model: nn.Linear, masters: Masters, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            backward(model, seed=step)
            optimizer.step()
            optimizer.zero_grad()

    def fresh() -> tuple[nn.Linear, Masters, torch.optim.Optimizer]:
        model = layer(torch.bfloat16)
        masters = Masters(list(model.parameters()))
        optimizer = make_optimizer(masters.parameters, "adamw", learning_rate=1e-3, weight_decay=0.1)
        masters.follow(optimizer)
        return model, masters, optimizer

    whole = fresh()
    some(*whole, range(12))
    first = fresh()
    some(*first, range(5))
    second = fresh()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    second[2].load_state_dict(first[2].state_dict())
    some(*second, range(5, 12))
    assert torch.equal(whole[0].weight, second[0].weight)
    assert torch.equal(whole[1].parameters[0], second[1].parameters[0])


def test_the_model_is_as_it_was_afterwards() -> None:
    model = layer(torch.bfloat16)
    masters = Masters(list(model.parameters()))
    del masters
    gc.collect()
    backward(model)
    assert every(p.grad is not None for p in model.parameters())
