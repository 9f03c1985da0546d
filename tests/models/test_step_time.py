"""What a plan says of a step's time beside what an H200 took for it (docs/speed.md, docs/bench)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nbtune.device import machine
from nbtune.models.config_facts import ModelFacts
from nbtune.models.step_time import Work, device_seconds, host_seconds, seconds_of, update_seconds
from nbtune.spec import Placement
from tests.planner.test_planner import LLAMA_8B

CARD = dataclasses.replace(machine("h200"), flops=5.67e14, link=53e9)  # as they were measured there
LLAMA_1B = dataclasses.replace(
    LLAMA_8B, hidden_size=2048, intermediate_size=8192, num_layers=16, head_dim=64, tied=True, parameters=1_235_814_400
)
QWEN3 = dataclasses.replace(
    LLAMA_8B, hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128,
    vocab_size=151936, tied=True, parameters=596_049_920, head_norms=True,
)  # fmt: skip
GEMMA3 = dataclasses.replace(
    LLAMA_8B, hidden_size=1152, intermediate_size=6912, num_layers=26, num_heads=4, num_kv_heads=1, head_dim=256,
    vocab_size=262144, tied=True, parameters=999_885_952, head_norms=True, norms_behind=True,
)  # fmt: skip
OLMO2 = dataclasses.replace(
    LLAMA_8B, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=16, num_kv_heads=16, head_dim=128,
    vocab_size=100352, parameters=1_484_916_736, head_norms=True, norms_behind=True,
)  # fmt: skip
AS_THEY_ARE = dataclasses.replace(CARD, bf16=False)  # weights did not travel in 12 bits when these were measured
MEASURED: list[tuple[ModelFacts, Placement, Any, int, int, float]] = [
    (LLAMA_8B, Placement(), "keep", 4, 2048, 0.4435),
    (LLAMA_8B, Placement(), "selective", 4, 2048, 0.5546),
    (LLAMA_8B, Placement(), "recompute", 4, 2048, 0.6038),
    (LLAMA_8B, Placement(), "offload", 4, 2048, 0.6090),
    (LLAMA_8B, Placement(format="nf4"), "keep", 4, 2048, 0.4592),
    (LLAMA_8B, Placement(format="fp8"), "keep", 4, 2048, 0.3426),
    (LLAMA_8B, Placement(resident=0), "offload", 4, 2048, 0.6552),
    (LLAMA_8B, Placement(resident=8), "offload", 1, 4096, 0.4284),
    (LLAMA_8B, Placement(resident=8), "selective", 2, 2042, 0.3860),
    (LLAMA_8B, Placement(format="nf4", resident=0), "offload", 4, 2048, 0.6070),
    (LLAMA_8B, Placement(format="nf4", resident=4), "offload", 8, 2048, 1.1928),
    (LLAMA_1B, Placement(), "keep", 4, 2048, 0.0836),
    (LLAMA_1B, Placement(), "keep", 1, 512, 0.00725),
]


WITH_NORMS: list[tuple[ModelFacts, Any, int, int, float]] = [
    (QWEN3, "keep", 8, 1024, 0.0638),
    (QWEN3, "selective", 4, 2048, 0.0704),
    (QWEN3, "offload", 8, 2048, 0.1645),
    (GEMMA3, "keep", 4, 1024, 0.0400),
    (GEMMA3, "recompute", 2, 2048, 0.0537),
    (GEMMA3, "recompute", 8, 2048, 0.2407),
    (OLMO2, "keep", 4, 1024, 0.0489),
    (OLMO2, "recompute", 8, 2048, 0.2881),
]


@pytest.mark.parametrize("row", WITH_NORMS, ids=lambda r: f"{r[0].num_layers}-{r[1]}-{r[2]}x{r[3]}")
def test_norms_of_heads_and_behind_halves_count(row: tuple[Any, ...]) -> None:
    """docs/bench/2026-11-30-h200-memory.jsonl, calls 5 and 6: the shorter of two visits."""
    model, policy, rows, length, took = row
    found = seconds_of(model, CARD, Placement(), policy, Work(rows * length, length))
    assert found == pytest.approx(took, rel=0.15)


@pytest.mark.parametrize("row", MEASURED, ids=lambda r: f"{r[0].num_layers}-{r[1].words()[:22]}-{r[2]}-{r[3]}x{r[4]}")
def test_what_a_card_took_is_what_is_reckoned(row: tuple[Any, ...]) -> None:
    model, weights, policy, rows, length, took = row
    reckoned = seconds_of(model, AS_THEY_ARE, weights, policy, Work(rows * length, length))
    assert reckoned == pytest.approx(took, rel=0.08)


def test_weights_that_travel_in_12_bits_take_less_of_the_link() -> None:
    def took(card: Any, format: Any, tokens: int) -> float:
        return seconds_of(LLAMA_8B, card, Placement(format=format, resident=8), "offload", Work(tokens, 4096))

    assert took(CARD, "16bit", 4096) < 0.92 * took(AS_THEY_ARE, "16bit", 4096)
    assert took(CARD, "16bit", 16384) == pytest.approx(took(AS_THEY_ARE, "16bit", 16384), rel=0.05)  # it hides anyway
    assert took(CARD, "nf4", 4096) == took(AS_THEY_ARE, "nf4", 4096)


def test_full_training_with_its_update() -> None:
    work = Work(4 * 2048, 2048, full=True)
    reckoned = seconds_of(LLAMA_1B, CARD, Placement(), "keep", work) + update_seconds(CARD, LLAMA_1B.parameters)
    assert reckoned == pytest.approx(0.1335, rel=0.1)


def test_more_work_takes_longer() -> None:
    def took(**changes: Any) -> float:
        return seconds_of(LLAMA_8B, CARD, Placement(), "keep", Work(**{"tokens": 8192, "length": 2048, **changes}))

    plain = took()
    assert took(length=8192) > plain  # attention
    assert took(full=True) > 1.3 * plain
    assert 1.2 * plain < took(references=1) < 1.5 * plain
    assert took(own_layers=0.5) > 1.3 * plain
    assert took(tokens=4096) < plain < 2.1 * took(tokens=4096)


SMALL = dataclasses.replace(
    LLAMA_8B, hidden_size=960, intermediate_size=2560, num_layers=32, num_heads=15, num_kv_heads=5, head_dim=64,
    vocab_size=49152, tied=True, parameters=361_821_120,
)  # fmt: skip
AWAY, HERE = Placement(resident=0), Placement()
LAUNCHED: list[tuple[ModelFacts, Placement, Any, bool, int, int, float]] = [
    (SMALL, HERE, "keep", True, 4, 1024, 0.0891),
    (SMALL, HERE, "keep", True, 4, 512, 0.0932),
    (LLAMA_1B, HERE, "keep", True, 2, 512, 0.0463),  # its update is longer than what the host has to do beside it
    (LLAMA_1B, AWAY, "keep", False, 2, 1024, 0.0806),
    (LLAMA_1B, AWAY, "offload", False, 2, 2048, 0.1038),
    (OLMO2, AWAY, "recompute", False, 2, 1024, 0.1088),
]


@pytest.mark.parametrize("row", LAUNCHED, ids=lambda r: f"{r[0].num_layers}-{r[2]}-{r[4]}x{r[5]}")
def test_steps_that_a_host_launches(row: tuple[Any, ...]) -> None:
    """docs/bench/2026-11-30-predictions-fourth-h200.jsonl: that host took 21.8 µs for a small kernel both ways."""
    model, weights, policy, full, rows, length, took = row
    card, work = dataclasses.replace(CARD, launch=21.8e-6), Work(rows * length, length, full=full, recorded=False)
    trained = model.parameters if full else 0
    on_card = device_seconds(model, card, weights, policy, work) + update_seconds(card, trained, full=full)
    assert max(on_card, host_seconds(model, card, weights, policy, work)) == pytest.approx(took, rel=0.2)
    slower = dataclasses.replace(card, launch=4 * card.launch)
    assert host_seconds(model, slower, weights, policy, work) > 3 * took


def test_what_is_not_recorded_waits_for_the_host() -> None:
    """As a cap leaves no room for a recording, or as weights travel: 16 layers, launched one kernel after the other."""
    slow = dataclasses.replace(CARD, launch=37e-6)  # that host was not asked: as its two figures fit
    tight = seconds_of(LLAMA_1B, slow, Placement(), "keep", Work(2048, 2048, recorded=False))
    assert tight == pytest.approx(0.0808, rel=0.1)
    assert tight > 3 * seconds_of(LLAMA_1B, CARD, Placement(), "keep", Work(2048, 2048))
    away = seconds_of(LLAMA_1B, slow, Placement(resident=0), "keep", Work(4 * 2048, 2048))
    assert away == pytest.approx(0.1353, rel=0.1)
