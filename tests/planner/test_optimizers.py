"""What an optimizer needs is planned, and what is not to be had here is said before anything is loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nbtune.errors import PlanError
from nbtune.planner import Plan, make_plan
from nbtune.spec import from_mapping
from nbtune.spec.learning import OPTIMIZERS
from tests.planner.test_planner import LLAMA_8B, _card, _data


def planned(kind: str = "cuda", **fields: Any) -> Plan:
    device = dataclasses.replace(_card(200), kind=kind, capability=(9, 0))
    return make_plan(from_mapping({"data": "rows", "steps": 3, **fields}), LLAMA_8B, _data(), device)


def test_state_is_as_large_as_the_optimizer_keeps() -> None:
    found = {name: planned(optim=name).memory.optimizer / planned().trainable_parameters for name in OPTIMIZERS}
    assert found["adamw"] == 8
    assert found["lion"] == 4
    assert found["muon"] == 4
    assert found["adamw_8bit"] == pytest.approx(2.03, abs=0.01)
    assert found["lion_8bit"] == pytest.approx(1.02, abs=0.01)
    assert found["adafactor"] == 4 / 16  # r = 16
    assert planned(optim="lion").disk_bytes < planned().disk_bytes


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if kind.paged])
def test_paged_state_needs_a_card(name: str) -> None:
    assert planned(optim=name).total_steps == 3
    with pytest.raises(PlanError, match="moves its state out of a GPU") as error:
        planned("cpu", optim=name)
    assert planned("cpu", optim=error.value.fix.split("`")[1].removeprefix("optim: ")).total_steps == 3


def test_bitsandbytes_does_not_run_on_apple() -> None:
    with pytest.raises(PlanError, match="Apple"):
        planned("mps", optim="adamw_8bit")


@pytest.mark.parametrize(
    ("adapter", "rate"), [("full", "lora_b_rate"), ("lora", "embedding_rate"), ("lora", "head_rate")]
)
def test_a_rate_of_what_is_not_trained_is_refused(adapter: str, rate: str) -> None:
    with pytest.raises(PlanError, match=f"`{rate}` changes nothing"):
        planned(adapter=adapter, optim_args={rate: 2})


def test_a_warm_up_that_lasts_as_long_as_the_run_is_refused_also_where_epochs_say_how_long() -> None:
    rows = _data().rows
    asked = {"steps": None, "epochs": 1, "batch_size": 8}
    assert planned(schedule={"warmup_steps": 1}, **asked).total_steps == -(-rows // 8)
    with pytest.raises(PlanError, match="a warm-up of 100,000 steps does not end within this run"):
        planned(schedule={"warmup_steps": 100_000}, **asked)
