"""A plan spends memory and time by what was found of the model, and refuses what a run would refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nbtune.data.prepare.stats import DataFacts
from nbtune.errors import PlanError
from nbtune.methods import METHODS
from nbtune.models.abilities import Abilities, Blocks, Claim
from nbtune.planner import Plan, make_plan
from nbtune.planner.done_once import once_of, said_of_once
from nbtune.spec import from_mapping
from tests.planner.test_planner import LLAMA_8B, _card, _data

WHOLE = tuple(Blocks(what=what, count=n, accelerated=True) for what, n in (("layers", 32), ("norm", 1), ("head", 1)))
LEFT = Blocks(what="layers", count=32, accelerated=False, why="its attention has sinks")


def plan(blocks: tuple[Blocks, ...] = WHOLE, **fields: Any) -> Plan:
    found = Abilities(blocks=blocks)
    spec = {"data": "rows", "micro_batch_size": 2, "activations": "keep", **fields}
    card = dataclasses.replace(_card(500), ram=2**40)
    return make_plan(from_mapping(spec), LLAMA_8B, _data(), card, abilities=found)


def test_blocks_and_a_head_that_are_left_alone_cost_their_memory() -> None:
    whole, stock = plan(), plan((LEFT, *WHOLE[1:]))
    assert stock.memory.activations > 1.3 * whole.memory.activations
    assert stock.memory.head <= whole.memory.head  # its share of a step's peak: such a layer's own is beyond it
    assert stock.peak_bytes > whole.peak_bytes
    headless = plan((WHOLE[0], Blocks(what="head", count=1, accelerated=False, why="it scales")))
    assert headless.memory.head > 2 * whole.memory.head
    assert headless.memory.activations == whole.memory.activations
    nothing = plan((Blocks(what="model", count=1, accelerated=False, why="it has no list of decoder layers"),))
    assert (nothing.memory.activations, nothing.memory.head) == (stock.memory.activations, headless.memory.head)


def test_layers_that_are_left_alone_among_others_cost_their_share_and_stay() -> None:
    some = Blocks(what="layers", count=24, accelerated=True)
    mixed = (some, LEFT.model_copy(update={"count": 8}), *WHOLE[1:])
    whole, part, stock = plan(), plan(mixed), plan((LEFT, *WHOLE[1:]))
    assert whole.memory.activations < part.memory.activations < stock.memory.activations
    streamed = [plan(blocks, weights="streamed").memory.weights for blocks in (WHOLE, mixed)]
    assert streamed[0] < streamed[1] < whole.memory.weights
    with pytest.raises(PlanError, match="into nbtune's own blocks"):
        plan((LEFT, *WHOLE[1:]), weights="streamed")


def test_the_starting_adapter_is_kept_beside_the_trained_one_where_a_method_compares_with_it() -> None:
    base, started = plan(method="dpo"), plan(method="dpo", start_from="demo")
    assert started.memory.adapter == 2 * base.memory.adapter
    assert started.peak_bytes > base.peak_bytes
    for fields in ({"start_from": "demo"}, {"method": "orpo", "start_from": "demo"}):
        assert plan(**fields).memory.adapter == base.memory.adapter  # type: ignore[arg-type]


@pytest.mark.parametrize("packing", [True, False, None])
def test_auto_packs_only_where_that_is_known_to_be_safe_and_says_so(packing: bool | None) -> None:
    made = _packed(packing, "auto")
    assert made.packing is bool(packing)
    assert any(reason.startswith("rows are packed" if packing else "rows are not packed") for reason in made.reasons)
    in_order = _packed(packing, "auto", order="bucketed")
    assert not in_order.packing
    assert any("`order: bucketed` could not be kept" in reason for reason in in_order.reasons)


def test_packing_by_name_is_refused_where_it_leaks_and_left_to_the_run_where_nobody_knows() -> None:
    with pytest.raises(PlanError, match="LlamaForCausalLM does not keep the rows of a pack apart: why"):
        _packed(False, True)
    assert _packed(None, True).packing
    assert not _packed(True, False).packing


def _packed(safe: bool | None, wanted: Any, **fields: Any) -> Plan:
    found = Abilities(blocks=WHOLE, packing=Claim(holds=safe, words="why"))
    spec = {"data": "rows", "packing": wanted, **fields}
    return make_plan(from_mapping(spec), LLAMA_8B, _data(), _card(500), abilities=found)


def test_8_bits_are_refused_where_layers_are_left_alone() -> None:
    assert plan(weights="fp8").weights.eight_bit
    with pytest.raises(PlanError, match="and 32 layers are none: its attention has sinks"):
        plan((LEFT, *WHOLE[1:]), weights="fp8")


def test_experts_that_are_not_chosen_cost_no_time() -> None:
    spec = from_mapping({"data": "rows"})
    sparse = dataclasses.replace(LLAMA_8B, stacked=7_000_000_000, experts_used=0.125)
    dense, mixture = (make_plan(spec, model, _data(), _card(500)) for model in (LLAMA_8B, sparse))
    assert mixture.seconds < dense.seconds / 3
    assert mixture.memory.weights >= dense.memory.weights


@pytest.mark.parametrize(
    ("fields", "blocks", "packing", "longest", "tokens"),
    [
        ({}, WHOLE, False, 3000, 600),
        ({}, WHOLE, False, 400, 400),  # no more than a pair's places
        ({}, WHOLE, True, 3000, 0),  # packs may hold several pairs
        ({}, WHOLE, True, 400, 0),  # two of 200 tokens, one beside the other
        ({}, WHOLE, True, 399, 399),  # one alone
        ({"method": "reward"}, WHOLE, False, 3000, 0),  # its head reads the end of each
        ({"method": "sft"}, WHOLE, False, 3000, 0),
        ({"gpus": 2}, WHOLE, False, 3000, 0),
        ({}, (LEFT, *WHOLE[1:]), False, 3000, 0),
    ],
)
def test_what_goes_through_a_model_once_is_what_a_pair_begins_with(
    fields: dict[str, Any], blocks: Any, packing: bool, longest: int, tokens: int
) -> None:
    data = DataFacts(rows=10, tokens_total=2000, longest=300, pair=600)
    spec = from_mapping({"data": "rows", "method": "dpo", **fields})
    assert once_of(spec, Abilities(blocks=blocks), data, longest, packing=packing) == tokens


@pytest.mark.parametrize(
    ("method", "again", "said"), [("dpo", True, True), ("dpo", False, False), ("orpo", True, False)]
)
def test_a_reference_is_asked_once_where_rows_come_again(method: str, again: bool, said: bool) -> None:
    words = said_of_once(METHODS[method], Abilities(blocks=WHOLE), again, parted=False)
    assert any("what the reference says" in one for one in words) == said


@pytest.mark.parametrize("method", ["sft", "kto", *(name for name, each in METHODS.items() if each.pairwise)])
def test_a_plan_says_that_prompts_are_shared_where_it_counts_so(method: str) -> None:
    data, abilities = DataFacts(rows=10, tokens_total=2000, longest=300, pair=600), Abilities(blocks=WHOLE)
    counted = once_of(from_mapping({"data": "rows", "method": method}), abilities, data, 3000, packing=False) > 0
    for parted in (False, True):
        words = said_of_once(METHODS[method], abilities, False, parted=parted)
        assert any("both answers of a pair" in one for one in words) == (counted and not parted)
