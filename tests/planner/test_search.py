"""The search for the fastest way that fits: kept within every limit, and never slower where there is more."""

from __future__ import annotations

import dataclasses
from itertools import pairwise, product

import pytest

from nbtune.device import DeviceFacts
from nbtune.errors import PlanError
from nbtune.models.config_facts import ModelFacts
from nbtune.planner import Plan, make_plan
from nbtune.spec import from_mapping
from tests.planner.test_planner import GIB, LLAMA_8B, _data

SMALL = dataclasses.replace(
    LLAMA_8B, hidden_size=2048, intermediate_size=8192, num_layers=16, head_dim=64, tied=True, parameters=1_235_814_400
)
CAPS = (3, 4, 5, 6.5, 8, 10, 12, 14.6, 18, 22.5, 30, 44, 60, 78, 140)
SETTINGS = list(product((LLAMA_8B, SMALL), ("lora", "qlora"), (512, 2048, 8192), (1, 8, 12)))  # 36


def capped(model: ModelFacts, gib: float, link: float = 52e9, **fields: object) -> Plan | None:
    total = int(gib * GIB)
    card = DeviceFacts("cuda", "card", total, total, (9, 0), True, ram=200 * GIB, flops=5.93e14, link=link, cap=total)
    spec = from_mapping({"data": "rows", "steps": 10, **fields})
    try:
        return make_plan(spec, model, _data(int(spec.sequence_len or 2048)), card)
    except PlanError:
        return None


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s[0].num_layers}-{s[1]}-{s[2]}-{s[3]}")
def test_within_the_cap_and_no_slower_with_more(setting: tuple[ModelFacts, str, int, int]) -> None:
    model, adapter, length, batch = setting
    plans = [capped(model, gib, adapter=adapter, sequence_len=length, batch_size=batch) for gib in CAPS]
    found = [(gib, plan) for gib, plan in zip(CAPS, plans, strict=True) if plan is not None]
    assert found
    assert plans[plans.index(found[0][1]) :] == [plan for _, plan in found]  # what fits in less fits in more
    for gib, plan in found:
        assert plan.peak_bytes <= gib * GIB
        assert plan.micro_batch_size * plan.gradient_accumulation_steps == batch
    for (_, less), (_, more) in pairwise(found):
        assert more.seconds <= less.seconds * (1 + 1e-9)


def test_weights_that_travel_do_so_for_many_rows_at_once() -> None:
    """Under 8 GiB the weights travel once for each micro-batch: 8 rows at once hide that, 2 would wait for it."""
    wide, narrow = capped(LLAMA_8B, 8), capped(LLAMA_8B, 8, micro_batch_size=1, batch_size=8)
    assert wide is not None
    assert narrow is not None
    assert wide.weights.streams
    assert wide.micro_batch_size >= 4
    assert wide.seconds < 0.5 * narrow.seconds


def test_a_slow_link_is_spared() -> None:
    fast, slow = capped(LLAMA_8B, 30), capped(LLAMA_8B, 30, link=3e9)
    assert fast is not None
    assert slow is not None
    assert not slow.weights.streams
    assert fast.seconds <= slow.seconds


@pytest.mark.parametrize(
    ("gib", "batch", "adapter", "tokens"),
    [(5, 4, "qlora", 12_900), (7, 8, "qlora", 12_900), (5, 8, "lora", 12_000), (14.6, 8, "lora", 12_500)],
)
def test_an_8b_model_under_a_cap(gib: float, batch: int, adapter: str, tokens: int) -> None:
    """What an H200's rates promise, of rows of 2,048 tokens."""
    plan = capped(LLAMA_8B, gib, adapter=adapter, batch_size=batch)
    assert plan is not None
    assert plan.weights.streams
    mean = 1024  # of `_data`, whose rows are half as long on average
    assert plan.total_steps * batch * mean / plan.seconds > tokens
