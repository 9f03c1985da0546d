"""Each schedule, with its numbers, is that of transformers or torch at each of fifty steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.optim.lr_scheduler import OneCycleLR

from nbtune.errors import SpecError
from nbtune.spec import from_mapping
from nbtune.spec.learning import SCHEDULES, ScheduleArgs
from nbtune.train.schedule import learning_rate_of

STEPS, PEAK = 50, 1.0
ASKED: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("linear", {}, "get_linear_schedule_with_warmup", {}),
    ("linear", {"floor": 0.3}, "get_polynomial_decay_schedule_with_warmup", {"lr_end": 0.3}),
    ("cosine", {}, "get_cosine_schedule_with_warmup", {}),
    ("cosine", {"floor": 0.1}, "get_cosine_with_min_lr_schedule_with_warmup", {"min_lr_rate": 0.1}),
    ("cosine_with_restarts", {"cycles": 3}, "get_cosine_with_hard_restarts_schedule_with_warmup", {"num_cycles": 3}),
    ("polynomial", {"power": 2.5}, "get_polynomial_decay_schedule_with_warmup", {"lr_end": 0.0, "power": 2.5}),
    ("warmup_stable_decay", {}, "get_wsd_schedule", {"num_decay_steps": 5}),
    ("warmup_stable_decay", {"decay": "linear", "decay_share": 0.3, "floor": 0.1}, "get_wsd_schedule",
     {"num_decay_steps": 15, "decay_type": "linear", "min_lr_ratio": 0.1}),
]  # fmt: skip


def rates(schedule: Any, optimizer: torch.optim.Optimizer) -> list[float]:
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


@pytest.mark.parametrize(("name", "args", "theirs", "told"), ASKED)
def test_transformers(name: str, args: dict[str, Any], theirs: str, told: dict[str, Any]) -> None:
    optimizer = sgd()
    made = getattr(transformers.optimization, theirs)(optimizer, num_warmup_steps=7, num_training_steps=STEPS, **told)
    asked = ScheduleArgs(warmup_steps=7, **args)
    mine = learning_rate_of(name, total_steps=STEPS, warmup_ratio=0.5, args=asked)
    assert [mine(step) for step in range(STEPS)] == pytest.approx(rates(made, optimizer), abs=1e-12)


@pytest.mark.parametrize("timescale", [None, 20])
def test_inverse_square_root(timescale: int | None) -> None:
    optimizer = sgd()
    made = transformers.get_inverse_sqrt_schedule(optimizer, num_warmup_steps=7, timescale=timescale)
    asked = ScheduleArgs(warmup_steps=7, timescale=timescale)
    mine = learning_rate_of("inverse_sqrt", total_steps=STEPS, warmup_ratio=0.5, args=asked)
    assert [mine(step) for step in range(STEPS)] == pytest.approx(rates(made, optimizer), abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
def test_one_cycle(share: float) -> None:
    optimizer = sgd()
    made = OneCycleLR(optimizer, max_lr=PEAK, total_steps=STEPS, pct_start=share, cycle_momentum=False)
    asked = ScheduleArgs(warmup_steps=round(share * STEPS))
    mine = learning_rate_of("one_cycle", total_steps=STEPS, warmup_ratio=0.5, args=asked)
    assert [mine(step) for step in range(STEPS)] == pytest.approx(rates(made, optimizer), abs=1e-12)


def test_a_range_test_rises_evenly_in_its_logarithm() -> None:
    mine = learning_rate_of("range_test", total_steps=STEPS, warmup_ratio=0.5, args=ScheduleArgs(floor=0.01))
    assert [mine(step) for step in range(STEPS)] == pytest.approx(torch.logspace(-2, 0, STEPS).tolist(), rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_peak_is_reached_and_never_passed(name: str) -> None:
    factor = learning_rate_of(name, total_steps=STEPS, warmup_ratio=0.1)
    found = [factor(step) for step in range(STEPS)]
    assert max(found) == pytest.approx(1.0)
    assert min(found) >= 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "share"), [(1, 0.03), (1, 0.0), (1, 1.0), (2, 0.03), (2, 1.0), (9, 1.0)])
def test_no_run_is_so_short_that_nothing_is_learnt(name: str, steps: int, share: float) -> None:
    """A warm-up of all steps never ends: the rate of a run of one step was 0."""
    factor = learning_rate_of(name, total_steps=steps, warmup_ratio=share)
    assert max(factor(step) for step in range(steps)) == pytest.approx(1.0, rel=0.3 if name == "one_cycle" else 1e-3)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({"schedule": {"power": 2}}, "`schedule.power` changes nothing: schedule `linear`"),
        ({"schedule": {"floor": 0.1}, "lr_scheduler_type": "constant"}, "schedule `constant`"),
        ({"schedule": {"warmup_steps": 9}, "steps": 9}, "does not end within 9"),
        ({"optim": "lion", "optim_args": {"eps": 1e-6}}, "`optim_args.eps` changes nothing: optimizer `lion`"),
        ({"optim_args": {"momentum": 0.9}}, "optimizer `adamw`"),
    ],
)
def test_what_would_change_nothing_is_refused(written: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        from_mapping({"data": "rows", **written})
