"""Plans for Apple machines, from facts that were written down: nothing that they cannot do is ever chosen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtune.device import DeviceFacts
from nbtune.errors import PlanError
from nbtune.planner import make_plan
from nbtune.spec import Placement, from_mapping
from tests.planner.test_planner import GIB, LLAMA_8B, _data

MACHINE = Path(__file__).parent / "machines" / "macbook-m3-max.json"


def machine() -> DeviceFacts:
    body = json.loads(MACHINE.read_text())
    return DeviceFacts(**{**body, "capability": tuple(body["capability"])})


@settings(max_examples=60, deadline=None)
@given(
    free=st.floats(1, 160),
    longest=st.integers(16, 16_384),
    batch=st.integers(1, 32),
    adapter=st.sampled_from(["lora", "dora", "full"]),
    accelerate=st.booleans(),
)
def test_an_apple_plan_is_16_bit_without_pinned_memory(free, longest, batch, adapter, accelerate):
    asked = from_mapping({"data": "rows", "batch_size": batch, "adapter": adapter, "accelerate": accelerate})
    facts = dataclasses.replace(machine(), free=int(free * GIB))
    try:
        plan = make_plan(asked, LLAMA_8B, _data(longest), facts)
    except PlanError:
        return
    assert (plan.device, plan.dtype, plan.weights) == ("mps", "bf16", Placement())
    assert plan.activations != "offload"  # it keeps them in pinned RAM: here all memory is one
    assert plan.peak_bytes <= facts.free


def test_where_only_offloading_would_fit_an_apple_plan_says_that_nothing_does():
    asked = from_mapping({"data": "rows", "batch_size": 1, "activations": "recompute"})
    need = make_plan(asked, LLAMA_8B, _data(16_384), machine()).peak_bytes
    facts = dataclasses.replace(machine(), free=int(need / 0.92) - GIB)
    for activations in ("recompute", "auto"):
        with pytest.raises(PlanError, match="does not fit"):
            make_plan(asked.model_copy(update={"activations": activations}), LLAMA_8B, _data(16_384), facts)


@pytest.mark.parametrize(
    "fields", [{"adapter": "qlora"}, {"weights": "nf4"}, {"weights": "fp8"}, {"activations": "offload"}]
)
def test_what_an_apple_machine_cannot_do_is_refused_with_a_way_out(fields):
    with pytest.raises(PlanError) as caught:
        make_plan(from_mapping({"data": "rows", **fields}), LLAMA_8B, _data(), machine())
    assert caught.value.fix
