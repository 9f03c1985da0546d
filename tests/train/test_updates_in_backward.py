"""Weights that are updated as soon as their gradients are there: no gradient stays, and small updates are not lost."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nbtune.errors import TrainError
from nbtune.spec.learning import OptimArgs
from nbtune.train.backward_stepper import BackwardStepper
from nbtune.train.optimizer import make_optimizer
from nbtune.train.stochastic_rounding import round_stochastically
from nbtune.train.updates_in_backward import UpdatesInBackward
from tests.support.every import every

STEPS = 6


def model_of(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 24, bias=False), nn.Tanh(), nn.Linear(24, 1)).to(
        dtype
    )


def backward(model: nn.Module, step: int) -> None:
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
    (model(x).float() - 3).square().sum().backward()


def updates_of(model: nn.Module, name: str = "adamw", rate: float = 1e-2, **more: Any) -> UpdatesInBackward:
    def make(parts: Sequence[nn.Parameter], index: int) -> torch.optim.Optimizer:
        return make_optimizer(parts, name, learning_rate=rate, weight_decay=0.1, kinds=["matrix"] * len(parts))

    about: dict[str, Any] = {"seed": lambda step, index: 1000 * step + index, "max_norm": float("inf"), **more}
    return UpdatesInBackward(list(model.parameters()), make, **about)


def trained(dtype: torch.dtype = torch.float32, steps: int = STEPS, **more: Any) -> nn.Module:
    model = model_of(dtype)
    updates = updates_of(model, **more)
    for step in range(steps):
        updates.begin(step, 1e-2)
        backward(model, step)
        updates.end()
    return model


def plainly(steps: int = STEPS, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = model_of(dtype)
    optimizer = make_optimizer(list(model.parameters()), "adamw", learning_rate=1e-2, weight_decay=0.1)
    for step in range(steps):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    return model


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_fp32_weights_are_those_of_the_same_optimizer_after_the_backward() -> None:
    assert torch.equal(flat(trained()), flat(plainly()))


def test_there_is_one_gradient_at_a_time() -> None:
    model, there = model_of(), []
    for parameter in model.parameters():
        parameter.register_hook(lambda _: there.append(sum(p.grad is not None for p in model.parameters())))
    updates = updates_of(model)
    updates.begin(0, 1e-2)
    backward(model, 0)
    assert len(there) == 5
    assert set(there) == {0}
    assert every(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("name", "key"), [("adamw", "exp_avg_sq"), ("lion_8bit", "state1"), ("adamw_8bit", "state2")])
def test_parts_of_a_weight_have_the_states_of_the_whole(name: str, key: str) -> None:
    states = []
    for part in (8192, 4096):  # of fewer numbers bitsandbytes keeps 32 bits
        model = nn.Linear(128, 64, bias=False).bfloat16()
        nn.init.ones_(model.weight)
        updates = updates_of(model, name, part=part)
        updates.begin(0, 1e-2)
        model(torch.randn(3, 128, generator=torch.Generator().manual_seed(3)).bfloat16()).square().sum().backward()
        saved = updates.state_dict()["state"][0].values()
        inner = [state.get("__bnb_optimizer_quant_state__", state) for state in saved]  # so it is saved for FSDP
        states.append([state[key].flatten() for state in inner])
    assert [len(one) for one in states] == [1, 2]
    assert torch.equal(states[0][0], torch.cat(states[1]))


def test_updates_too_small_for_bf16_add_up_in_the_mean_and_not_by_rounding_to_the_nearest() -> None:
    """A thousandth of the last place at a time; the mean over draws is what fp32 has."""
    start, step, times = 1.0, 2.0**-13, 400
    exact = start + times * step
    nearest, drawn = torch.full((4096,), start).bfloat16(), torch.full((4096,), start).bfloat16()
    draws = torch.Generator().manual_seed(5)
    for _ in range(times):
        nearest.copy_(nearest.float() + step)
        drawn.copy_(round_stochastically(drawn.float() + step, draws))
    assert nearest.float().mean().item() == start
    assert drawn.float().mean().item() == pytest.approx(exact, abs=5e-4)  # of 0.049; the mean's own spread is 1e-4


@pytest.mark.parametrize("value", [-1.003, 3.3e-41, -7.7e30, 0.0, 256.5])
def test_what_is_drawn_is_one_of_the_two_neighbours(value: float) -> None:
    truth = torch.full((20_000,), value)
    found = round_stochastically(truth.clone(), torch.Generator().manual_seed(2))
    assert torch.equal(found, found.bfloat16().float())
    below, above = found.min(), found.max()
    assert below <= truth[0] <= above
    assert torch.nextafter(below.bfloat16(), torch.tensor(torch.inf).bfloat16()) >= above.bfloat16()
    assert found.double().mean().item() == pytest.approx(truth[0].item(), abs=0.02 * (above - below).item())


def test_numbers_without_a_value_stay_so() -> None:
    lost = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert torch.equal(round_stochastically(lost.clone(), torch.Generator()).nan_to_num(7), lost.nan_to_num(7))


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000, 0x7F80FFFF])
def test_no_bits_of_what_is_no_number_become_one(bits: int) -> None:
    """A card's own NaN has all bits set: what is added to it would carry over into the sign, and leave a zero."""
    lost = torch.full((4096,), bits, dtype=torch.int32).view(torch.float32)
    assert round_stochastically(lost, torch.Generator().manual_seed(1)).bfloat16().isnan().all()


def test_bf16_weights_learn_what_fp32_learns_in_the_mean() -> None:
    truth = flat(plainly(60))
    runs = [flat(trained(torch.bfloat16, 60, seed=lambda s, i, n=n: hash((n, s, i)) & 2**40 - 1)) for n in range(8)]
    mean = torch.stack(runs).float().mean(0)
    assert (mean - truth).norm() < 0.02 * truth.norm()


def test_the_same_seeds_give_the_same_weights_and_others_do_not() -> None:
    one, same = trained(torch.bfloat16), trained(torch.bfloat16)
    other = trained(torch.bfloat16, seed=lambda step, index: 77 + 1000 * step + index)
    assert torch.equal(flat(one), flat(same))
    assert not torch.equal(flat(one), flat(other))


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "lion", "lion_8bit", "adafactor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_goes_on_exactly(dtype: torch.dtype, name: str) -> None:
    whole = trained(dtype, name=name, part=None if name == "adafactor" else 256)
    first = model_of(dtype)
    before = updates_of(first, name, part=None if name == "adafactor" else 256)
    for step in range(3):
        before.begin(step, 1e-2)
        backward(first, step)
    saved, weights = before.state_dict(), first.state_dict()
    second = model_of(dtype)
    second.load_state_dict(weights)
    after = updates_of(second, name, part=None if name == "adafactor" else 256)
    after.load_state_dict(saved)
    for step in range(3, STEPS):
        after.begin(step, 1e-2)
        backward(second, step)
    assert torch.equal(flat(second), flat(whole))


def test_gradients_are_measured_without_an_update() -> None:
    model, same = model_of(), model_of()
    updates = updates_of(model, max_norm=1.0)
    updates.begin(0, None)
    backward(model, 0)
    updates.end()
    backward(same, 0)
    assert torch.equal(flat(model), flat(same))
    assert every(p.grad is None for p in model.parameters())
    norm = torch.nn.utils.clip_grad_norm_(same.parameters(), 1.0)
    assert updates.norm is not None
    assert updates.norm.item() == pytest.approx(norm.item(), rel=1e-6)


def test_a_step_whose_norm_is_known_is_clipped_as_torch_clips() -> None:
    model, same = model_of(), model_of()
    updates = updates_of(model, max_norm=1.0)
    optimizer = make_optimizer(list(same.parameters()), "adamw", learning_rate=1e-2, weight_decay=0.1)
    for step in range(3):  # the same rows: the norm falls, and that of the step itself was measured
        updates.begin(step, None)
        backward(model, step)
        updates.end()
        updates.begin(step, 1e-2)
        backward(model, step)
        updates.end()
        backward(same, step)
        torch.nn.utils.clip_grad_norm_(same.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(flat(model), flat(same), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_that_leaps_is_noticed_within_the_step(dtype: torch.dtype) -> None:
    """What is known of this step's counts where it is more than the step before's."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    make = lambda parts, index: torch.optim.SGD(parts, lr=1.0)  # noqa: E731
    updates = UpdatesInBackward([model.weight], make, seed=lambda *_: 0, max_norm=1.0)
    for step, (size, moved) in enumerate([(0.5, 0.5), (100.0, 1.0), (0.5, 0.005), (0.5, 0.5)]):
        nn.init.zeros_(model.weight)
        updates.begin(step, 1.0)
        model(torch.full((1, 1), -size, dtype=dtype)).sum().backward()
        updates.end()
        assert model.weight.item() == pytest.approx(moved, rel=1e-3 if dtype == torch.float32 else 1e-2)


def test_a_gradient_that_comes_in_parts_is_refused() -> None:
    model = nn.Linear(2, 2)
    updates = updates_of(model)
    updates.begin(0, 1e-2)
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(TrainError, match="in several parts"):
        model(torch.ones(1, 2)).sum().backward()


def test_outside_of_steps_and_without_it_gradients_are_the_models() -> None:
    model = model_of()
    updates = updates_of(model)
    backward(model, 0)
    assert every(p.grad is not None for p in model.parameters())
    del updates
    gc.collect()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_optimizers_of_rows_and_columns_see_the_matrix(name: str) -> None:
    model = nn.Linear(24, 32, bias=False).bfloat16()
    before = flat(model)
    updates = updates_of(model, name, part=None)
    updates.begin(0, 1e-2)
    model(torch.ones(2, 24, dtype=torch.bfloat16)).sum().backward()
    assert not torch.equal(flat(model), before)
    assert model.weight.dtype == torch.bfloat16


class _Push:
    """A loss whose gradient is one, for every weight and step."""

    looks_ahead, figures = False, ()

    def __call__(self, model: nn.Module, batch: Any, **_: Any) -> Any:
        return SimpleNamespace(loss=model.weight.float().sum(), figures=None)


def test_each_step_of_a_run_draws_anew() -> None:
    """Else a quarter of the weights would move at each step, and the others never: right in the mean, and wrong."""
    model = nn.Linear(64, 64, bias=False).bfloat16()
    nn.init.constant_(model.weight, 1.5)
    about: dict[str, Any] = {
        "weight_decay": [0.0],
        "kinds": ["matrix"],
        "args": OptimArgs(),
        "device": model.weight.device,
    }
    stepper = BackwardStepper(model, _Push(), "lion", max_grad_norm=0.0, seed=1, **about)  # type: ignore[arg-type]
    for step in range(16):
        stepper.learning_rate = 2.0**-9  # a quarter of the last place
        stepper.accumulate(None, denominator=1.0, step=step, micro_step=0)  # type: ignore[arg-type]
        stepper.update(2.0**-9)
    moved = (1.5 - model.weight.detach().float()) * 2**7
    assert moved.mean().item() == pytest.approx(4, abs=0.2)
    assert moved.std().item() == pytest.approx(3**0.5, abs=0.2)  # of 16 draws, a quarter each


def test_the_first_step_s_loss_is_said_once_though_its_norm_is_measured_before() -> None:
    model = nn.Linear(2, 2, bias=False)
    about: dict[str, Any] = {"weight_decay": [0.0], "kinds": ["matrix"], "args": OptimArgs(), "seed": 1}
    stepper = BackwardStepper(
        model,
        _Push(),
        "lion",
        max_grad_norm=1.0,
        device=model.weight.device,
        **about,  # type: ignore[arg-type]
    )
    for step in range(2):
        nn.init.constant_(model.weight, 3.0)
        stepper.learning_rate = 0.5
        stepper.accumulate(None, denominator=1.0, step=step, micro_step=0)  # type: ignore[arg-type]
        told = stepper.update(0.5)
        assert told.loss.item() == 12.0
        assert told.norm.item() == 2.0


@pytest.mark.parametrize(("kind", "moved"), [("embedding", 1.5), ("head", 0.25), ("matrix", 0.5)])
def test_a_part_has_the_rate_that_it_is_told(kind: str, moved: float) -> None:
    model = nn.Linear(2, 2, bias=False)
    nn.init.constant_(model.weight, 3.0)
    about: dict[str, Any] = {"weight_decay": [0.0], "kinds": [kind], "seed": 1, "device": model.weight.device}
    stepper = BackwardStepper(
        model,
        _Push(),
        "lion",
        max_grad_norm=0.0,
        args=OptimArgs(embedding_rate=3.0, head_rate=0.5),
        **about,  # type: ignore[arg-type]
    )
    stepper.learning_rate = 0.5
    stepper.accumulate(None, denominator=1.0, step=0, micro_step=0)  # type: ignore[arg-type]
    assert torch.equal(3.0 - model.weight.detach(), torch.full((2, 2), moved))


def test_a_run_that_goes_on_is_clipped_by_the_norm_of_the_step_before() -> None:
    """And does not measure once more, as a first step does."""

    def made() -> tuple[nn.Linear, BackwardStepper, list[int]]:
        asked: list[int] = []

        class Counted(_Push):
            def __call__(self, model: nn.Module, batch: Any, **more: Any) -> Any:
                asked.append(1)
                return super().__call__(model, batch, **more)

        model = nn.Linear(2, 2, bias=False)
        nn.init.constant_(model.weight, 3.0)
        about: dict[str, Any] = {"weight_decay": [0.0], "kinds": ["matrix"], "args": OptimArgs(), "seed": 1}
        about["device"] = model.weight.device
        return model, BackwardStepper(model, Counted(), "adamw", max_grad_norm=1.0, **about), asked  # type: ignore[arg-type]

    (first, before, _), (second, after, asked) = made(), made()
    before.learning_rate = after.learning_rate = 0.5
    before.accumulate(None, denominator=1.0, step=0, micro_step=0)  # type: ignore[arg-type]
    before.update(0.5)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    for stepper in (before, after):
        stepper.accumulate(None, denominator=1.0, step=1, micro_step=0)  # type: ignore[arg-type]
        stepper.update(0.5)
    assert torch.equal(first.weight, second.weight)
    assert len(asked) == 1
