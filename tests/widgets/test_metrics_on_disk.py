"""The columns on disk: the same numbers as from the log, at any zoom, also after a step back, a crash, and for two."""

from __future__ import annotations

import json

import numpy as np
import pytest
from memory_run import made_up_step

from nbtune import events as ev
from nbtune.atomic_io import try_lock
from nbtune.spec import RunSpec
from nbtune.store import folder
from nbtune.store.event_log import EventWriter
from nbtune.store.run_reader import RunReader
from nbtune.widgets import metrics_on_disk
from nbtune.widgets.metrics import COLUMNS, Series, merged, row_of
from nbtune.widgets.metrics_on_disk import Columns
from nbtune.widgets.run_state import Watched

LOSS, COUNT, LOW, HIGH = (COLUMNS.index(name) for name in ("loss", "count", "loss_min", "loss_max"))


@pytest.fixture(scope="module", autouse=True)
def locks(tmp_path_factory):
    """Where no lock is known (none of Linux, macOS, Windows) every panel reads the log: tests of panels see to that."""
    with (tmp_path_factory.mktemp("locks") / "lock").open("ab") as file:
        if not try_lock(file):
            pytest.skip("no system's lock on this machine")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(metrics_on_disk, "FEW", 1000)
    monkeypatch.setattr(metrics_on_disk, "_KEEP", 300)


@pytest.fixture
def run(tmp_path):
    return RunReader(folder.create(tmp_path, "long", RunSpec(data="rows")))


def write(run, *events):
    writer = EventWriter(run.folder / "events.jsonl")
    for event in events:
        writer(event)
    writer.close()


def steps(first, last):
    return [made_up_step(k, 5000) for k in range(first, last + 1)]


def raw(first, last):
    return np.array([row_of(k, made_up_step(k + 1, 5000)) for k in range(first, last)]).T


def same(found, wanted):
    time = COLUMNS.index("time")
    keep = [k for k in range(len(COLUMNS)) if k != time]
    np.testing.assert_allclose(found[keep], wanted[keep])


def test_any_part_of_it_at_any_zoom_has_the_extremes_and_the_mean(tmp_path):
    kept = Columns(tmp_path)
    for k in range(5000):
        kept.add(row_of(k, made_up_step(k + 1, 5000)))
        kept.save(dict)
    assert kept.fresh < 300
    everything = raw(0, 5000)
    for first, last, limit in [(0, 5000, 64), (0, 5000, 500), (123, 4567, 40), (990, 1010, 100), (4800, 5000, 300)]:
        found = kept.rows(first, last, limit)
        assert found.shape[1] <= limit
        begin = int(found[0, 0])
        assert begin <= first < begin + 8 * max(1, (last - first) // limit) + 8
        assert found[COUNT].sum() == last - begin
        part = everything[:, begin:last]
        assert (found[LOW].min(), found[HIGH].max()) == (part[LOSS].min(), part[LOSS].max())
        assert np.isclose((found[LOSS] * found[COUNT]).sum(), part[LOSS].sum())
    same(kept.rows(700, 800, 100), everything[:, 700:800])


def test_a_panel_opens_from_the_columns_and_knows_the_same(run):
    write(run, ev.State(state="running", total_steps=5000, time=1.0), *steps(1, 4000), ev.Eval(step=4000, loss=1.0))
    first = Watched(run)
    first.close()
    state = json.loads((run.folder / "columns" / "state.json").read_text())
    assert state["rows"] > 3000
    write(run, *steps(4001, 4100), ev.State(state="stopped", time=9e9))
    again = Watched(RunReader(run.folder))
    whole = Series()
    whole.add(steps(1, 4100))
    assert again.view.series.next == 4100
    same(again.view.series.snapshot(100), whole.snapshot(100))
    assert again.view.lists["evals"] == [{"step": 4000, "loss": 1.0, "best": False}]
    assert again.view.standing.totals.steps == 4100
    assert again.view.status()["state"] == "stopped"
    assert int(again.mark) == len(run.events())
    again.close()


def test_what_is_zoomed_into_comes_step_by_step(run):
    write(run, *steps(1, 5000))
    watched = Watched(run)
    body, rows = watched.view.detail(2000, 2040)
    found = np.frombuffer(rows).reshape(len(COLUMNS), body["rows"])
    assert (found[COUNT] == 1).all()
    assert found[2].min() <= 2000
    assert found[2].max() >= 2040
    watched.close()


def test_a_step_back_is_taken_back_on_disk_too(run):
    write(run, *steps(1, 3000), *steps(2001, 2500))
    watched = Watched(run)
    watched.close()
    assert watched.view.series.next == 2500
    again = Watched(RunReader(run.folder))
    same(again.columns.rows(0, 2500, 5000), raw(0, 2500))
    again.close()


@pytest.mark.parametrize("harm", ["short", "gone", "other log", "not json"])
def test_columns_that_do_not_fit_are_made_anew(run, harm):
    write(run, *steps(1, 3000))
    Watched(run).close()
    at = run.folder / "columns"
    if harm == "short":
        (at / "0.f8").write_bytes((at / "0.f8").read_bytes()[:-100_000])
    elif harm == "gone":
        (at / "1.f8").unlink()
    elif harm == "not json":
        (at / "state.json").write_text("{")
    else:
        log = (run.folder / "events.jsonl").read_bytes()
        (run.folder / "events.jsonl").write_bytes(log[: len(log) // 2])
    again = Watched(RunReader(run.folder))
    wanted = len(run.events())
    assert again.view.series.next == wanted
    same(again.columns.rows(0, wanted, 5000), raw(0, wanted))
    again.close()


def test_two_panels_of_one_run_hold_little_and_one_writes(run):
    write(run, *steps(1, 2000))
    one, two = Watched(run), Watched(RunReader(run.folder))
    for k in range(2000, 4000, 100):
        write(run, *steps(k + 1, k + 100))
        one.catch_up()
        two.catch_up()
    assert one.columns.fresh < 600
    assert two.columns.fresh < 900
    for panel in (one, two):
        same(panel.columns.rows(1900, 4000, 5000), raw(1900, 4000))
        panel.close()


def test_a_short_run_leaves_no_columns(run):
    write(run, *steps(1, 900), ev.State(state="finished"))
    Watched(run).close()
    assert not (run.folder / "columns").exists()


def test_boxes_of_eight_are_the_same_as_boxes_by_index():
    rows = raw(0, 800)
    same(merged(rows, 100, group=8), merged(rows, 100))
