"""Steps are the same whenever they are asked for; packs are blocks; mixes keep their shares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtune.data.batching.collate import Batch, collate, pack
from nbtune.data.batching.mixture import epoch_order, quotas
from nbtune.data.batching.packing import best_fit
from nbtune.data.batching.sampler import BatchPlan
from nbtune.data.prepare.dataset import Builder, Dataset
from tests.support.every import every, some


def dataset(lengths: list[int], *, sources: int = 1, weights: tuple[float, ...] = (), seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    builder = Builder([f"s{i}" for i in range(sources)], weights)
    for row, length in enumerate(lengths):
        ids = rng.integers(1, 99, length).astype(np.int32)
        trained = rng.random(length) < 0.5
        trained[-1] = True
        builder.add(ids, trained, row % sources, row)
    return builder.build()


def same(left: Batch, right: Batch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(left).values(), vars(right).values(), strict=True)
    )


@pytest.mark.parametrize("packing", [False, True])
def test_a_step_is_the_same_whenever_it_is_asked_for(packing: bool) -> None:
    data = dataset([3, 9, 4, 12, 7, 5, 8, 2, 11, 6, 3] * 3)

    def plan() -> BatchPlan:
        return BatchPlan(
            data, micro_batch_size=2, gradient_accumulation_steps=3, seed=5, packing=packing, sequence_len=16
        )

    first = plan()
    in_order = [first.step(k) for k in range(3 * first.steps_per_epoch)]
    for k in (17 % len(in_order), 0, 5, 2, len(in_order) - 1):
        later = plan().step(k)
        assert len(later) == len(in_order[k])
        assert every(same(a, b) for a, b in zip(later, in_order[k], strict=True))


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_sees_every_example_once_in_another_order(packing: bool) -> None:
    data = dataset([3, 9, 4, 12, 7, 5, 8, 2, 11, 6, 3] * 3)
    plan = BatchPlan(data, micro_batch_size=4, gradient_accumulation_steps=2, seed=1, packing=packing, sequence_len=16)
    seen = []
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen.append([e for k in steps for batch in plan.step(k) for e in batch.examples])
        assert sorted(seen[-1]) == list(range(33))
    assert seen[0] != seen[1] != seen[2]


def test_padded_batches() -> None:
    data = dataset([3, 7])
    batch = collate(data, [0, 1], multiple=8, pad_id=0, bucket=4)
    assert batch.input_ids.shape == (2, 8)
    assert batch.attention_mask.tolist() == [[1] * 3 + [0] * 5, [1] * 7 + [0]]
    assert batch.num_tokens == 10
    ids, trained = data.arrays(0)
    assert batch.input_ids[0, :3].tolist() == ids.tolist()
    expected = [int(i) if t and k else -100 for k, (i, t) in enumerate(zip(ids, trained, strict=True))]
    assert batch.labels[0, :3].tolist() == expected
    assert (batch.labels[0, 3:] == -100).all()
    assert batch.input_ids.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.int64
    assert collate(dataset([8, 8]), [0, 1]).attention_mask is None


def check_rows(batch: Batch) -> None:
    """`trained_rows` and `trained_labels` say the same as shifted labels do."""
    shifted = torch.full_like(batch.labels, -100)
    shifted[:, :-1] = batch.labels[:, 1:]
    rows = (shifted.flatten() != -100).nonzero().flatten()
    assert batch.num_trained == len(rows)
    assert batch.trained_rows[: len(rows)].tolist() == rows.tolist()
    assert batch.trained_labels[: len(rows)].tolist() == shifted.flatten()[rows].tolist()
    assert (batch.trained_labels[len(rows) :] == -100).all()
    assert len(batch.trained_rows) % 64 == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 16), min_size=1, max_size=20), st.integers(0, 99))
def test_masks_do_not_depend_on_neighbours_in_a_pack(lengths: list[int], seed: int) -> None:
    data = dataset(lengths, seed=seed)
    alone = {i: collate(data, [i], multiple=1) for i in range(len(data))}
    plan = BatchPlan(data, micro_batch_size=3, seed=seed, packing=True, sequence_len=16)
    for k in some(range(plan.steps_per_epoch)):
        for batch in some(plan.step(k)):
            check_rows(batch)
            bounds = batch.cu_seqlens.tolist()
            assert bounds[-1] == batch.input_ids.numel()
            assert batch.max_seqlen == max(b - a for a, b in itertools.pairwise(bounds))
            flat = {name: getattr(batch, name).flatten() for name in ("input_ids", "labels", "position_ids")}
            documents = [
                (a, b)
                for a, b in itertools.pairwise(bounds)
                if flat["input_ids"][a:b].any()  # padding is all zeros here
            ]
            assert len(documents) == len(batch.examples)
            for (start, end), example in zip(documents, batch.examples, strict=True):
                for name in ("input_ids", "labels", "position_ids"):
                    assert flat[name][start:end].tolist() == getattr(alone[example], name)[0].tolist()
    total = sum(batch.num_trained for k in range(plan.steps_per_epoch) for batch in plan.step(k))
    assert total == sum(batch.num_trained for batch in alone.values())


def test_what_was_judged_of_tokens_stands_at_them_in_a_pack() -> None:
    """As it does where rows lie side by side; and each one's end is its last token."""
    rng, builder = np.random.default_rng(3), Builder(["rows"])
    for row, length in enumerate((5, 9, 4, 7)):
        ids = rng.integers(1, 99, length).astype(np.int32)
        judged = np.where(rng.random(length) < 0.4, rng.integers(0, 5, length), np.nan).astype(np.float32)
        builder.add(ids, ~np.isnan(judged), 0, row, 0.0, judged)
    data = builder.build()
    packed = pack(data, [[1, 0], [3, 2]], 16)
    apart = collate(data, [1, 0, 3, 2])
    starts = [0, 9, 16, 23]
    for row, (at, example) in enumerate(zip(starts, (1, 0, 3, 2), strict=True)):
        size = len(data.arrays(example)[0])
        for batch, first in ((packed, at), (apart, row * apart.input_ids.shape[1])):
            values = batch.token_values.flatten()[first : first + size].numpy()
            np.testing.assert_array_equal(values, data.steps(example))
            assert batch.ends[row] == first + size - 1
    assert torch.isfinite(packed.token_values).sum() == torch.isfinite(apart.token_values).sum() > 4


def test_padding_of_a_pack_is_a_document_of_its_own() -> None:
    batch = pack(dataset([3, 4]), [[0, 1]], length=16)
    assert batch.cu_seqlens.tolist() == [0, 3, 7, 16]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, 2, 3, *range(9)]
    assert batch.attention_mask is None
    assert batch.num_tokens == 7


def test_bad_plans() -> None:
    with pytest.raises(ValueError, match="empty"):
        BatchPlan(dataset([]), micro_batch_size=1)
    with pytest.raises(ValueError, match="sequence_len"):
        BatchPlan(dataset([9]), micro_batch_size=1, sequence_len=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80))
def test_best_fit_packs_everything_once(lengths: list[int]) -> None:
    bins = best_fit(np.array(lengths, np.int64), 50)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert [members for members in bins if sum(lengths[i] for i in members) > 50] == []
    assert len(bins) <= 2 * max(1, -(-sum(lengths) // 50))


def test_best_fit_wastes_little_on_log_normal_lengths() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.8, 100_000).astype(int), 8, 2048)
    bins = best_fit(lengths, 2048)
    assert lengths.sum() >= 0.98 * len(bins) * 2048
    with pytest.raises(ValueError, match="2049"):
        best_fit(np.array([2049]), 2048)


def test_quotas_add_up() -> None:
    assert quotas(10, [1, 1, 1]) == [4, 3, 3]
    assert quotas(7, [0.5, 3, 0.5]) == [1, 5, 1]


def test_a_mix_keeps_its_shares() -> None:
    data = dataset([2] * 1000, sources=3, weights=(2.0, 1.0, 0.5))
    source_of = data.source_of
    drawn = np.concatenate([epoch_order(1000, 3, epoch, source_of, data.weights) for epoch in range(100)])
    shares = np.bincount(source_of[drawn], minlength=3) / len(drawn)
    assert shares == pytest.approx(np.array([2, 1, 0.5]) / 3.5, abs=0.01)
    times = np.bincount(drawn, minlength=1000)
    for source in range(3):  # within a source nobody is seen twice before everybody was seen once
        assert np.ptp(times[source_of == source]) <= 1


def test_a_mix_is_the_same_after_a_resume() -> None:
    data = dataset([4] * 90, sources=2, weights=(3.0, 1.0))
    plan = BatchPlan(data, micro_batch_size=4, gradient_accumulation_steps=2, seed=9)
    sequence = [batch.examples for k in range(40) for batch in plan.step(k)]
    resumed = BatchPlan(data, micro_batch_size=4, gradient_accumulation_steps=2, seed=9)
    assert [batch.examples for k in range(23, 40) for batch in resumed.step(k)] == sequence[
        -len([batch for k in range(23, 40) for batch in plan.step(k)]) :
    ]


def test_a_packed_mix_keeps_its_shares_and_sees_every_row() -> None:
    data = dataset([4, 7, 5, 9] * 75, sources=2, weights=(3.0, 1.0))

    def plan() -> BatchPlan:
        return BatchPlan(data, micro_batch_size=2, gradient_accumulation_steps=2, seed=9, packing=True, sequence_len=32)

    whole = plan()
    sequence = [batch.examples for k in range(6 * whole.steps_per_epoch) for batch in whole.step(k)]
    seen = np.array([example for examples in sequence for example in examples])
    shares = np.bincount(data.source_of[seen], minlength=2) / len(seen)
    assert shares == pytest.approx(np.array([0.75, 0.25]), abs=0.02)
    assert set(seen.tolist()) == set(range(300))
    assert len(seen) == pytest.approx(6 * 300, rel=0.03)
    resumed = plan()
    later = [batch.examples for k in range(7, 6 * whole.steps_per_epoch) for batch in resumed.step(k)]
    assert sequence[-len(later) :] == later
    assert 0.9 < data.lengths[np.concatenate(whole.bins)].sum() / (len(whole.bins) * whole.sequence_len) <= 1


@pytest.mark.parametrize("packing", [False, True])
def test_processes_draw_disjoint_shares_of_a_step(packing: bool) -> None:
    data = dataset([3, 9, 4, 12, 7, 5, 8, 2, 11, 6, 3, 4] * 8)

    def steps(micro: int, rank: int, ranks: int) -> list[set[int]]:
        plan = BatchPlan(data, micro_batch_size=micro, seed=3, packing=packing, sequence_len=16, rank=rank, ranks=ranks)
        return [{e for batch in plan.step(k) for e in batch.examples} for k in range(plan.steps_per_epoch)]

    halves, whole = [steps(2, rank, 2) for rank in range(2)], steps(4, 0, 1)
    assert len(whole) == len(halves[0]) == len(halves[1])
    for left, right, both in zip(*halves, whole, strict=True):
        assert left | right == both
        assert not left & right


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_that_make_as_many_passes_learn_of_each_row_once(ranks: int) -> None:
    """Where weights are parted all make each pass together: what one has too few of counts nothing."""
    data = dataset([3, 5, 4, 6, 7])
    seen = []
    for rank in range(ranks):
        how = {"micro_batch_size": 1, "per_step": len(data), "rank": rank, "ranks": ranks, "shuffle": False}
        even, mine = (BatchPlan(data, even=even, **how).step(0) for even in (True, False))  # type: ignore[arg-type]
        assert len(even) == -(-len(data) // ranks)
        assert every(same(a, b) for a, b in zip(even, mine, strict=False))
        for batch in even[len(mine) :]:
            assert (batch.idle_pass, batch.num_trained, batch.num_tokens, batch.weight) == (True, 0, 0, 0)
            assert (batch.labels != -100).any()  # its loss is a number
        seen += [e for batch in even if not batch.idle_pass for e in batch.examples]
    assert sorted(seen) == list(range(len(data)))


def test_a_dataset_can_be_cut_and_reordered() -> None:
    data = dataset([3, 5, 2, 7])
    taken = data.take([3, 1])
    assert [e.input_ids for e in taken] == [data[3].input_ids, data[1].input_ids]
    assert [e.row for e in taken] == [3, 1]
    assert data[-1].row == 3
    with pytest.raises(IndexError):
        data[4]
