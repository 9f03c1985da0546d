"""Full training without kept gradients: planned where memory is short, counted, named; and what cannot be had then."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

import nbtune
from nbtune.device import DeviceFacts
from nbtune.errors import PlanError
from nbtune.planner import Plan, make_plan
from nbtune.planner.in_backward import refusal
from nbtune.spec import from_mapping
from tests.planner.test_planner import GIB, LLAMA_8B, _data
from tests.support.every import every, some

ROWS = [{"prompt": f"Say {n}", "completion": f"{n}"} for n in range(16)]
TURNED = {"optim_args": {"in_backward": True}}


def planned(gib: float, model: Any = LLAMA_8B, length: int = 2048, count: int = 1, **fields: Any) -> Plan:
    total = int(gib * GIB)
    card = DeviceFacts("cuda", "card", total, total, (9, 0), True, ram=200 * GIB, flops=5.93e14, link=52e9, cap=total)
    spec = from_mapping({"data": "rows", "steps": 10, "adapter": "full", "sequence_len": length, **fields})
    return make_plan(spec, model, _data(length), card, devices=count)


def test_an_8b_model_is_trained_whole_in_34_gib() -> None:
    plan = planned(34, batch_size=1)
    assert plan.in_backward
    assert plan.optimizer == "adamw_8bit"
    assert (plan.micro_batch_size, plan.gradient_accumulation_steps) == (1, 1)
    assert plan.peak_bytes <= 34 * GIB
    memory = plan.memory
    assert memory.weights == pytest.approx(2 * LLAMA_8B.parameters, rel=0.01)
    assert memory.optimizer == pytest.approx(2 * LLAMA_8B.parameters * (1 + 4 / 256), rel=0.01)
    assert memory.adapter == 0
    assert memory.gradients + memory.head < 2.5 * GIB  # a layer's, or the head's with some logits
    assert plan.disk_bytes == pytest.approx((3 * 4 + 4) * LLAMA_8B.parameters, rel=0.02)  # there are no fp32 copies
    said = str(plan)
    assert "in backward by adamw_8bit" in said
    assert "rounded stochastically" in said
    assert "norm of the step before" in said


def test_gradients_are_kept_where_there_is_room_and_no_memory_is_saved_for_nothing() -> None:
    plan = planned(180, batch_size=1)
    assert not plan.in_backward
    assert plan.optimizer == ""
    assert "in backward" not in str(plan)
    less = planned(100, batch_size=1)
    assert (less.in_backward, less.optimizer) == (True, "")  # AdamW's own states have room


def test_what_a_refusal_says_it_needs_is_enough_and_less_is_not() -> None:
    with pytest.raises(PlanError, match="the smallest way") as raised:
        planned(12, batch_size=1)
    needed = float(re.search(r"needs ([\d.]+) GiB", raised.value.cause)[1])  # type: ignore[index]
    fits = next(gib for gib in range(12, 100) if _fits(gib))
    assert 0.9 * fits <= needed <= fits


def _fits(gib: float) -> bool:
    try:
        return planned(gib, batch_size=1).in_backward
    except PlanError:
        return False


def test_only_16_bit_weights_are_said_to_be_rounded() -> None:
    for dtype, rounded in (("fp32", False), ("bf16", True)):
        assert ("rounded stochastically" in str(planned(300, batch_size=1, dtype=dtype, **TURNED))) == rounded


def test_an_optimizer_that_was_asked_for_is_kept() -> None:
    assert planned(40, batch_size=1, optim="lion_8bit").optimizer == ""
    with pytest.raises(PlanError, match="it does not fit"):
        planned(40, batch_size=1, optim="paged_adamw")


def test_rows_of_a_step_go_at_once_and_as_many_as_fit_where_nobody_said_how_many() -> None:
    plan = planned(34)
    assert plan.gradient_accumulation_steps == 1
    assert 1 <= plan.micro_batch_size < 8
    assert f"a step has {plan.micro_batch_size} row" in str(plan)
    with pytest.raises(PlanError, match="64 rows a step do not fit") as raised:
        planned(34, batch_size=64)
    assert f"write `batch_size: {plan.micro_batch_size}`" in str(raised.value)


def test_it_can_be_asked_for_and_refused() -> None:
    assert planned(180, batch_size=1, **TURNED).in_backward
    with pytest.raises(PlanError, match="it does not fit"):
        planned(36, batch_size=1, optim_args={"in_backward": False})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"adapter": "lora"}, "changes nothing of adapter `lora`"),
        ({"gradient_accumulation_steps": 2}, "another micro-batch"),
        ({"batch_size": 4, "micro_batch_size": 2}, "another micro-batch"),
        ({"optim_args": {"in_backward": True, "ema_decay": 0.9}}, "no average"),
        ({"dtype": "fp16"}, "loss scale"),
        ({"count": 2, "gpus": 2}, "several processes"),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_what_cannot_be_had_then_is_one_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as raised:
        planned(180, **{**TURNED, **fields})
    assert words in raised.value.cause
    assert raised.value.fix
    if fields.get("adapter") != "lora":  # left to the plan, it is not taken
        asked = {name: value for name, value in fields.items() if name != "optim_args"}
        average = {"optim_args": {"ema_decay": 0.9}} if "optim_args" in fields else {}
        with pytest.raises(PlanError, match="it does not fit"):
            planned(36, **{**asked, **average})


def test_a_trainer_of_trls_keeps_its_own_gradients() -> None:
    asked = from_mapping({"data": "rows", "adapter": "full"}).model_copy(update={"method": "grpo"})
    why_not = refusal(asked, "bf16", 1)
    assert why_not is not None
    assert "`grpo`" in why_not.cause


def test_more_memory_is_never_refused_and_a_plan_stays_within_it() -> None:
    small = dataclasses.replace(
        LLAMA_8B, hidden_size=2048, intermediate_size=8192, num_layers=16, head_dim=64, tied=True,
        parameters=1_235_814_400,
    )  # fmt: skip
    seen = [False]
    for gib in (5, 6, 7, 8, 10, 14, 18, 24, 30, 40):
        try:
            plan = planned(gib, small, batch_size=2)
        except PlanError:
            assert not seen[-1]
            continue
        seen.append(True)
        assert plan.peak_bytes <= gib * GIB
    assert len(seen) > 5


def test_the_table_names_it() -> None:
    ways = planned(40, batch_size=1).table()
    ours = [way for way in ways if "in backward (adamw_8bit)" in way.adapter]
    assert any(way.fits for way in ours)
    assert every(way.adapter == "full" for way in planned(800, batch_size=1).table() if way.sequence_len <= 1024)


def test_another_tools_name_for_it_is_known() -> None:
    plan = nbtune.plan({"data": ROWS, "adapter": "full", "steps": 2, "optimizer_in_bwd": True, "device": "cpu"})
    assert plan.in_backward


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_line_of_the_table_is_what_a_plan_of_so_many_rows_costs(rows: int) -> None:
    plan = planned(120, batch_size=rows, optim="adamw", **TURNED)
    lines = planned(120, batch_size=1, optim="adamw", **TURNED).table()
    (line,) = [one for one in lines if (one.sequence_len, one.micro_batch_size) == (2048, rows)]
    assert (line.bytes, line.activations, line.fits) == (plan.memory.total, plan.activations, True)


def test_the_tables_columns_stand_below_their_heads() -> None:
    _, heads, *lines = str(planned(40, batch_size=1).table()).splitlines()
    starts = [match.start() for match in re.finditer(r"(?:(?<=  )|^)\S", heads)]
    assert len(starts) == 8
    for line in some(lines):
        found = [match.start() for match in re.finditer(r"(?:(?<=  )|^)\S", line)]
        assert found == starts[: len(found)]
        assert len(found) >= 5
