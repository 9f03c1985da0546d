"""Which way is taken follows the memory there is: of the device, and of the host where weights may wait."""

from __future__ import annotations

from typing import Any

import pytest

from nbtune.device import DeviceFacts, MemoryUse
from nbtune.models.config_facts import ModelFacts
from nbtune.models.memory_estimate import MEMORY_POLICIES
from nbtune.models.memory_search import Setup, fit, may_record
from nbtune.spec import AdapterSpec
from nbtune.spec.placement import PLAIN, Home, Placement
from tests.planner.test_planner import GIB, LLAMA_8B

ORDER = list(MEMORY_POLICIES)


def way(gib: float, ram: float = 64, micro: int = 4, length: int = 2048, devices: int = 1, **choices: Any) -> Any:
    card = DeviceFacts("cuda", "card", int(gib * GIB), int(gib * GIB), (9, 0), True, ram=int(ram * GIB))
    setup = Setup(LLAMA_8B, AdapterSpec(r=16), card, Placement(), "bf16", length, devices=devices)
    best, smallest = fit(setup, [micro], **choices)
    assert best is None or best.memory.total <= gib * GIB
    assert best is None or smallest.memory.total <= best.memory.total
    return best


def test_less_memory_keeps_less_and_then_weights_travel() -> None:
    ways = [way(gib) for gib in (80, 40, 26, 24, 20, 14, 10, 8)]
    travels = [w.weights.streams for w in ways]
    assert travels == sorted(travels)
    assert travels[0] is False
    assert ways[-1].weights.resident < 8
    whole = [ORDER.index(w.activations) for w in ways if not w.weights.streams]
    assert whole == sorted(whole)
    assert whole[0] == ORDER.index("keep")


def test_a_host_without_room_keeps_weights_on_the_device() -> None:
    assert way(12, ram=8) is None
    assert way(12, ram=32).weights.streams


def test_inputs_wait_in_the_host_only_where_it_has_room_for_them() -> None:
    """Of 131,072 tokens of an 8B model the blocks' inputs are 34 GB."""
    roomy, tight = (way(40, ram=ram, micro=1, length=131072) for ram in (64, 24))
    assert roomy.activations == "offload"
    assert tight is None  # what stays on the device would be more than it has
    assert way(80, ram=24, micro=1, length=131072).activations == "recompute"


@pytest.mark.parametrize(("home", "resident"), [(Home.STREAMED, 0), (Home.DEVICE, None), (None, None)])
def test_what_is_asked_for_is_done(home: Any, resident: int | None) -> None:
    assert way(80, home=home).weights.resident == resident


def test_among_several_cards_weights_are_parted_before_they_travel() -> None:
    ways = [way(gib, devices=2) for gib in (80, 17, 15, 8)]
    assert [w.weights.shards for w in ways] == [False, True, True, False]
    assert ways[-1].weights.streams
    assert way(80, devices=2, home=Home.SHARDED).weights == Placement(parts=2)
    assert way(80, home=Home.SHARDED) is None  # one card alone
    needs = [way(80, devices=n, home=Home.SHARDED).memory.weights for n in (2, 4, 8)]
    assert needs == sorted(needs, reverse=True)
    assert way(8, ram=20, devices=2) is None  # in which the host would hold all weights twice


def test_what_cannot_travel_does_not() -> None:
    for adapter, kind, weights in (
        ("full", "cuda", PLAIN),
        ("lora", "mps", PLAIN),
        ("lora", "cuda", Placement(format="nf4")),
    ):
        place = DeviceFacts(kind, "it", 2 * GIB, 2 * GIB, bf16=True, unified=kind == "mps", ram=900 * GIB)
        setup = Setup(LLAMA_8B, AdapterSpec(type=adapter), place, weights, "bf16", 512)
        assert fit(setup, [1])[0] is None


def test_a_small_model_stays_whole() -> None:
    small = ModelFacts("s", "L", 64, 96, 2, 4, 2, 16, 256, True, 10**6, 128, 10**6, "float32")
    card = DeviceFacts("cuda", "card", 8 * GIB, 8 * GIB, (9, 0), True, ram=8 * GIB)
    best, _ = fit(Setup(small, AdapterSpec(), card, Placement(), "bf16", 128), [8, 4, 2])
    assert best is not None
    assert (best.weights, best.activations, best.micro_batch_size) == (PLAIN, "keep", 8)


def test_a_recording_has_room_only_in_what_a_limit_leaves_beside_the_cuda_context() -> None:
    """A 1B model, 8 rows of 2,048 under 5 GiB: 2.6 GiB stay, a micro-batch takes 0.95 more. A recording would keep
    these for itself, and what is asked of the weights before they are kept would find 0.6."""
    use = MemoryUse(allocated=int(2.6 * GIB), reserved=int(3.7 * GIB), peak=int(3.55 * GIB))
    limited = DeviceFacts("cuda", "card", 5 * GIB, 5 * GIB - use.reserved, (9, 0), True, cap=5 * GIB)
    assert not may_record(limited, use)
    assert may_record(DeviceFacts("cuda", "card", 140 * GIB, 5 * GIB - use.reserved, (9, 0), True), use)
