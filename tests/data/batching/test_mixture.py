"""Mixes: shares as asked, epochs that end where they should, and the same draws for everyone who asks again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtune.data.batching.mixture import Mixture, epoch_order, mixture, quotas
from nbtune.data.batching.packing import in_windows
from nbtune.data.batching.sampler import BatchPlan
from nbtune.data.prepare.dataset import Builder, Dataset
from nbtune.errors import SpecError
from nbtune.spec import MixSpec, from_mapping
from tests.support.every import every

DRAWS = 100_000


def dataset(rows: list[int], lengths: list[int], weights: list[float]) -> Dataset:
    builder = Builder([f"s{i}" for i in range(len(rows))], weights)
    for source, (count, length) in enumerate(zip(rows, lengths, strict=True)):
        for row in range(count):
            size = length + row % 3 - 1
            builder.add(np.full(size, 3 + source, np.int32), np.ones(size, bool), source, row)
    return builder.build()


def draws(data: Dataset, mix: MixSpec, count: int = DRAWS) -> np.ndarray:
    """The first examples of a run, by number."""
    made = mixture(data, mix)
    epochs = range(-(-count // made.draws))
    return np.concatenate([epoch_order(made.draws, 5, e, data.source_of, made.shares) for e in epochs])[:count]


def shares(data: Dataset, seen: np.ndarray, by_tokens: bool = False) -> np.ndarray:
    amounts = data.lengths[seen] if by_tokens else None
    found = np.bincount(data.source_of[seen], weights=amounts, minlength=len(data.sources))
    return np.asarray(found / found.sum())


@pytest.mark.parametrize("rows", [[1000, 500, 50], [7, 3, 11], pytest.param([1, 1, 1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("weights", [[1.0, 3.0, 0.5], [1.0, 1.0, 7.0]])
def test_shares_of_rows_and_of_tokens_are_those_asked_for(rows: list[int], weights: list[float]) -> None:
    data = dataset(rows, [10, 40, 200], weights)
    wanted = np.array(weights) / sum(weights)
    np.testing.assert_allclose(shares(data, draws(data, MixSpec())), wanted, atol=0.01)
    by_tokens = draws(data, MixSpec(by="tokens"))
    np.testing.assert_allclose(shares(data, by_tokens, by_tokens=True), wanted, atol=0.01)


def test_an_epoch_goes_on_in_each_source_where_the_one_before_stopped() -> None:
    """A source is gone through once before any of its rows comes again, wherever an epoch ends."""
    data = dataset([10, 7], [10, 10], [1.0, 1.0])
    drawn = np.concatenate([epoch_order(6, 5, epoch, data.source_of, [1.0, 1.0]) for epoch in range(20)])
    for source, count in enumerate((10, 7)):
        of_source = drawn[data.source_of[drawn] == source]
        seen = np.bincount(of_source - of_source.min(), minlength=count)
        assert len(of_source) == 60
        assert seen.max() - seen.min() <= 1


@pytest.mark.parametrize("packing", [False, True])
def test_shares_hold_in_the_batches_themselves(packing: bool) -> None:
    data = dataset([300, 500, 50], [10, 20, 60], [2.0, 1.0, 1.0])
    plan = BatchPlan(data, micro_batch_size=8, gradient_accumulation_steps=4, packing=packing, sequence_len=64)
    seen: list[int] = []
    k = 0
    while len(seen) < DRAWS:
        seen += [e for b in plan.step(k) for e in b.examples]
        k += 1
    np.testing.assert_allclose(shares(data, np.array(seen)), [0.5, 0.25, 0.25], atol=0.01)


@pytest.mark.parametrize("weights", [[0.2, 0.8], [0.8, 0.2], [0.6, 0.4]])
@pytest.mark.parametrize("sequences", [8, 16])
def test_a_packed_step_has_the_shares_of_the_mix(weights: list[float], sequences: int) -> None:
    """Best fit over all draws puts short rows together: then steps would be of one source (4 to 96 % of it)."""
    rng, builder = np.random.default_rng(0), Builder(["short", "long"], weights)
    for source, mean in enumerate((40, 300)):
        for row in range(400):
            size = int(np.clip(rng.lognormal(np.log(mean), 0.5), 4, 1000))
            builder.add(np.full(size, 3, np.int32), np.ones(size, bool), source, row)
    data = builder.build()
    plan = BatchPlan(data, micro_batch_size=sequences, packing=True, sequence_len=1024, mix=MixSpec())
    assert data.lengths[np.concatenate(plan.bins)].sum() > 0.95 * 1024 * len(plan.bins)
    lap = -(-len(plan.bins) // sequences)
    steps = [k for k in range(lap + lap // 4) if k != lap - 1]  # into the next lap; its last step is what is left over
    found = [np.array([e for b in plan.step(k) for e in b.examples]) for k in steps]
    share, rows = weights[0], np.mean([len(step) for step in found])
    spread = np.std([shares(data, step)[0] for step in found])
    assert spread < 1.2 * math.sqrt(share * (1 - share) / rows)  # that of draws


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 2)), min_size=1, max_size=200),
    st.integers(50, 120),
    st.integers(1, 9),
)
def test_windows_hold_every_draw_once(rows: list[tuple[int, int]], capacity: int, count: int) -> None:
    lengths, kinds = np.array(rows).T
    bins = in_windows(lengths, kinds, capacity, count)
    assert sorted(e for members in bins for e in members) == list(range(len(rows)))
    assert every(lengths[members].sum() <= capacity for members in bins)
    assert every(bins)
    # the first of a window is the first that no window before holds
    seen: set[int] = set()
    for first in range(0, len(bins), count):
        window = {e for members in bins[first : first + count] for e in members}
        assert min(window) == min(set(range(len(rows))) - seen)
        seen |= window


def test_a_weight_by_times_repeats_or_thins_a_source() -> None:
    data = dataset([100, 60, 40], [10, 10, 10], [2.0, 1.0, 0.5])
    made = mixture(data, MixSpec(by="times"))
    assert made.draws == 2 * 100 + 60 + 20
    for epoch in range(4):
        seen = np.bincount(epoch_order(made.draws, 1, epoch, data.source_of, made.shares), minlength=200)
        assert (seen[:100] == 2).all()
        assert (seen[100:160] == 1).all()
        assert (seen[160:].sum(), seen[160:].max()) == (20, 1)


def test_temperature_lies_between_the_sizes_and_all_the_same() -> None:
    data = dataset([9000, 1000], [10, 10], [1.0, 1.0])
    for temperature, wanted in ((1.0, 0.9), (2.0, 0.75), (1e6, 0.5)):
        seen = draws(data, MixSpec(temperature=temperature))
        assert shares(data, seen)[0] == pytest.approx(wanted, abs=0.01)
    long = dataset([1000, 1000], [10, 90], [1.0, 1.0])
    seen = draws(long, MixSpec(temperature=2.0, by="tokens"))
    assert shares(long, seen, by_tokens=True)[1] == pytest.approx(0.75, abs=0.01)


def test_an_epoch_ends_where_it_was_asked_to() -> None:
    data = dataset([100, 30], [10, 10], [1.0, 1.0])
    unequal = dataset([100, 30], [10, 10], [3.0, 1.0])
    assert mixture(data, MixSpec()) == Mixture(130)
    assert mixture(unequal, MixSpec()).draws == 130
    assert mixture(unequal, MixSpec(stop="first_exhausted")).draws == 120
    assert mixture(unequal, MixSpec(stop="all_exhausted")).draws == 134
    assert mixture(unequal, MixSpec(stop="once")) == Mixture(130)
    first = epoch_order(120, 0, 0, unequal.source_of, mixture(unequal, MixSpec()).shares)
    assert sorted(first[unequal.source_of[first] == 1]) == list(range(100, 130))
    made = mixture(unequal, MixSpec(stop="all_exhausted"))
    every = epoch_order(made.draws, 0, 0, unequal.source_of, made.shares)
    assert set(every) == set(range(130))
    once = BatchPlan(unequal, micro_batch_size=10, mix=MixSpec(stop="once"))
    seen = [e for k in range(once.steps_per_epoch) for b in once.step(k) for e in b.examples]
    assert sorted(seen) == list(range(130))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("mix", [MixSpec(), MixSpec(by="tokens", stop="all_exhausted"), MixSpec(by="times")])
def test_a_run_that_goes_on_draws_what_it_would_have_drawn(mix: MixSpec, packing: bool) -> None:
    data = dataset([90, 40, 13], [10, 30, 20], [2.0, 1.0, 1.0])

    def plan(**options: int) -> BatchPlan:
        size = options.pop("size", 4)
        return BatchPlan(data, micro_batch_size=size, seed=9, packing=packing, sequence_len=64, mix=mix, **options)

    whole = [[b.examples for b in plan().step(k)] for k in range(150)]
    for begin in (1, 37, 101):
        again = plan()
        assert [[b.examples for b in again.step(k)] for k in range(begin, 150)] == whole[begin:]
    left, right = plan(rank=0, ranks=2, size=2), plan(rank=1, ranks=2, size=2)
    for k in range(60):
        parts = [[e for b in p.step(k) for e in b.examples] for p in (left, right)]
        assert sorted(parts[0] + parts[1]) == sorted(e for group in whole[k] for e in group)


def test_two_processes_draw_disjoint_halves() -> None:
    data = dataset([100, 60], [10, 30], [1.0, 1.0])
    halves = []
    for rank in range(2):
        plan = BatchPlan(data, micro_batch_size=4, seed=9, rank=rank, ranks=2)
        halves.append([e for k in range(plan.steps_per_epoch) for b in plan.step(k) for e in b.examples])
    assert len(halves[0]) == len(halves[1]) == 80
    assert sorted(halves[0] + halves[1]) == list(range(160))


def test_orders() -> None:
    data = dataset([50, 30], [40, 10], [1.0, 1.0])

    def seen(order: str, epoch: int = 0) -> list[int]:
        plan = BatchPlan(data, micro_batch_size=8, seed=9, order=order)  # type: ignore[arg-type]
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        return [e for k in steps for b in plan.step(k) for e in b.examples]

    assert seen("given") == seen("given", 1) == list(range(80))
    for epoch in range(2):
        in_turn = seen("in_turn", epoch)
        assert sorted(in_turn[:50]) == list(range(50))
        assert sorted(in_turn) == list(range(80))
        assert in_turn[:50] != list(range(50))
        lengths = data.lengths[seen("short_first", epoch)]
        assert (np.diff(lengths) >= 0).all()
        assert sorted(seen("short_first", epoch)) == list(range(80))
    assert seen("in_turn") != seen("in_turn", 1)
    with pytest.raises(SpecError, match="packing"):
        from_mapping({"data": "rows", "packing": True, "order": "short_first"})


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 5000), st.integers(0, 50))
def test_quotas_never_shrink_and_stay_near_their_share(weights: list[float], count: int, more: int) -> None:
    fewer, later = quotas(count, weights), quotas(count + more, weights)
    assert sum(fewer) == count
    assert every(a <= b for a, b in zip(fewer, later, strict=True))
    total = math.fsum(weights)
    assert every(abs(q - count * w / total) < len(weights) for q, w in zip(fewer, weights, strict=True))


def test_rows_of_like_length_go_together() -> None:
    rng = np.random.default_rng(0)
    builder = Builder(["s"])
    for row, size in enumerate(rng.integers(4, 400, 1003)):
        builder.add(np.ones(size, np.int32), np.ones(size, bool), 0, row)
    data = builder.build()

    def padded(order: str, **options: int) -> tuple[int, list[int]]:
        plan = BatchPlan(data, micro_batch_size=8, seed=1, order=order, **options)  # type: ignore[arg-type]
        batches = [b for k in range(plan.steps_per_epoch) for b in plan.step(k)]
        return sum(b.input_ids.numel() - b.num_tokens for b in batches), [e for b in batches for e in b.examples]

    waste, seen = padded("bucketed")
    assert sorted(seen) == list(range(1003))
    assert waste < padded("shuffled")[0] / 10
    assert padded("bucketed")[1] == seen
    lengths = data.lengths[seen[:1000]].reshape(-1, 8).mean(1)
    assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.3
    later = BatchPlan(data, micro_batch_size=8, seed=1, order="bucketed")
    assert [e for k in range(60, 126) for b in later.step(k) for e in b.examples] == seen[480:]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([0.1, 1.0, 3.0]))
@settings(max_examples=40)
def test_shares_that_are_the_sizes_end_everything_at_once(rows: list[int], times: float) -> None:
    """However a share is rounded: a source of 3 rows of 10, weighed 0.3, is exhausted by 10 draws and not by 9."""
    data = dataset(rows, [4] * len(rows), [count * times + 0.0 for count in rows])
    for stop in ("first_exhausted", "all_exhausted"):
        made = mixture(data, MixSpec(stop=stop))
        assert made.draws == sum(rows)


def test_a_source_without_rows_takes_nothing_from_those_behind_it() -> None:
    data = dataset([5, 0, 7], [10, 10, 10], [1.0, 4.0, 1.0])
    for mix in (MixSpec(), MixSpec(temperature=2), MixSpec(by="tokens"), MixSpec(stop="all_exhausted")):
        seen = np.bincount(data.source_of[draws(data, mix, 400)], minlength=3)
        assert seen[1] == 0
        assert min(seen[0], seen[2]) > 100
    order = epoch_order(12, 5, 0, data.source_of, [1.0, 0.0, 1.0])
    assert sorted(set(data.source_of[order].tolist())) == [0, 2]


def test_rows_as_often_as_one_are_each_there_once() -> None:
    data = dataset([3, 5], [10, 10], [1.0, 1.0])
    for mix in (MixSpec(by="times"), MixSpec(), MixSpec(temperature=1), MixSpec(by="times", stop="once")):
        seen = draws(data, mix, 8)
        assert sorted(seen.tolist()) == list(range(8)), mix
    doubled = dataset([3, 5], [10, 10], [2.0, 2.0])
    assert np.bincount(draws(doubled, MixSpec(by="times"), 16), minlength=8).tolist() == [2] * 8


def test_the_seed_decides_which_rows_of_a_source_come_first() -> None:
    data = dataset([100, 100], [10, 10], [3.0, 1.0])
    drawn = [epoch_order(40, seed, 0, data.source_of, [3.0, 1.0]) for seed in (1, 2, 1, None)]
    chosen = [sorted(one.tolist()) for one in drawn]
    assert (drawn[0] == drawn[2]).all()
    assert chosen[0] != chosen[1]
    assert chosen[3] == [*range(30), *range(100, 110)], "without one the first of each"
