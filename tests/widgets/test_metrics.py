"""Columns of bounded length that lose no peak."""

from __future__ import annotations

import numpy as np

from nbtune.events import Step
from nbtune.widgets.metrics import COLUMNS, Series, merged


def steps(losses, start=1):
    return [
        Step(step=start + k, loss=float(loss), tokens_per_second=10.0, time=float(k)) for k, loss in enumerate(losses)
    ]


def test_a_short_run_is_kept_as_it_is():
    series = Series()
    series.add(steps([3, 2, 1]))
    assert series.next == 3
    assert series.column("loss").tolist() == [3, 2, 1]
    assert series.column("step").tolist() == [1, 2, 3]
    assert series.snapshot(512).shape == (len(COLUMNS), 3)


def test_a_hundred_thousand_steps_keep_extremes_counts_and_mean():
    rng = np.random.default_rng(0)
    losses = rng.normal(2, 0.1, 100_000)
    losses[41_234], losses[77_777] = 50, -50
    series = Series()
    series.add(steps(losses))
    picture = series.snapshot(512)
    column = {name: picture[k] for k, name in enumerate(COLUMNS)}
    assert picture.shape[1] <= 512
    assert len(series) <= series.limit
    assert (column["loss_max"].max(), column["loss_min"].min()) == (50, -50)
    assert column["count"].sum() == 100_000
    assert np.isclose((column["loss"] * column["count"]).sum(), losses.sum())
    assert (np.diff(column["step"]) > 0).all()
    # no hole and no overlap between rows
    assert (column["first"][1:] == column["first"][:-1] + column["count"][:-1]).all()


def test_a_box_of_boxes_has_the_mean_of_all_its_steps():
    series = Series()
    series.add(steps([1, 1, 1, 1, 1, 1, 1, 1, 6, 6]))
    once = merged(series.rows, 2)
    assert once[COLUMNS.index("count")].tolist() == [8, 2]
    assert merged(once, 1)[COLUMNS.index("loss")].tolist() == [2]


def test_boxes_nest_so_that_old_ones_never_change():
    series = Series()
    series.add(steps(range(1000)))
    before = merged(series.rows, 128)
    series.add(steps(range(24), start=1001))
    after = merged(series.rows, 128)
    assert (after[:, : before.shape[1] - 1] == before[:, :-1]).all()


def test_what_is_new_and_what_cannot_be_told_apart():
    series = Series(limit=64)
    series.add(steps(range(40)))
    assert series.since(38, 10)[COLUMNS.index("loss")].tolist() == [38, 39]
    assert series.since(40, 10).shape[1] == 0
    series.add(steps(range(60), start=41))
    assert series.since(1, 100) is None  # inside of a merged row
    assert series.since(96, 10)[COLUMNS.index("count")].tolist() == [4]
    assert series.since(100, 10).shape[1] == 0


def test_a_run_that_goes_back_to_a_checkpoint_forgets_what_came_after_it():
    series = Series()
    series.add(steps([3, 2, 1, 0]))
    assert series.cut(3)
    assert (series.next, series.column("step").tolist()) == (2, [1, 2])
    assert not series.cut(3)


def test_nan_neither_spreads_nor_vanishes():
    series = Series()
    series.add(steps([1, float("nan"), 3, 4]))
    row = merged(series.rows, 2)
    assert np.isnan(row[COLUMNS.index("loss"), 0])
    assert row[COLUMNS.index("loss_max")].tolist() == [1, 4]
