"""A run that goes on from another one's weights, with some rows left out or counted more."""

import pytest
import torch
from safetensors.torch import load_file

import nbtune
from nbtune.data.prepare.row_weights import mark_of
from nbtune.errors import SpecError, TrainError
from nbtune.store import checkpoints


def weights_of(run):
    return load_file(checkpoints.latest(run.folder) / "trainable.safetensors")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    rows = [{"prompt": f"What is {k}?", "completion": f"It is {k}, sailor."} for k in range(48)]
    fields = {
        "model": "nbtune/tiny",
        "data": "rows",
        "steps": 30,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "adapter": {"r": 4},
    }
    run = nbtune.finetune(fields, rows={"rows": rows}, runs_dir=tmp_path_factory.mktemp("runs"), name="first")
    run.rows_of_the_test = rows
    return run.wait()


def test_it_begins_where_the_other_ended_and_leaves_that_alone(first):
    before = {name: value.clone() for name, value in weights_of(first).items()}
    second = first.go_on(steps=1, learning_rate=1e-9, name="second").wait()
    assert second.folder != first.folder
    for name, value in weights_of(second).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-7)
    assert float(second.history["loss"].iloc[0]) < float(first.history["loss"].iloc[0]) - 1
    assert second.spec.start_from == first.folder.name
    for name, value in weights_of(first).items():
        assert torch.equal(value, before[name])

    # the new folder needs the other no more
    again = nbtune.repeat(second.folder).wait()
    assert again.history["loss"].tolist() == second.history["loss"].tolist()


def test_losses_say_which_rows_and_the_next_run_trains_so(first):
    losses = first.losses()
    losses.wait()
    trained = [row for row in losses.sorted() if row.part == "train"]
    held = [row.row for row in losses.sorted() if row.part == "eval"]
    gone, twice, back = (row.mark for row in trained[:3])
    losses.drop(gone).weight(twice, 2).drop(back).undo()
    assert losses.row_weights == {gone: 0, twice: 2}
    losses.weight(twice, 1).undo()
    assert losses.row_weights == {gone: 0, twice: 2}
    with pytest.raises(TrainError, match="no measured row"):
        losses.drop("r000000000000")
    with pytest.raises(SpecError):
        losses.weight(gone, -1)

    second = losses.go_on(steps=2, name="without")
    second.wait()
    assert second.spec.row_weights == {gone: 0, twice: 2}
    measured = second.losses()
    measured.wait()
    marks = {row.mark for row in measured.sorted()}
    assert gone not in marks
    assert len(marks) == 47
    assert sorted(row.row for row in measured.sorted() if row.part == "eval") == sorted(held)
    assert second.losses().row_weights == {gone: 0, twice: 2}  # and so on


def test_a_dropped_row_is_not_learnt(tmp_path):
    """Literal: of two rows one is left out; its loss stays as it was, the other's goes down."""
    rows = [
        {"prompt": "Who are you?", "completion": "Captain Tune."},
        {"prompt": "And then?", "completion": "Zebra xylophone."},
    ]
    fields = {
        "model": "nbtune/tiny",
        "data": "rows",
        "steps": 12,
        "batch_size": 2,
        "learning_rate": 5e-3,
        "eval": {"split": 0},
    }
    made = {}
    for name, weights in {"both": {}, "one": {mark_of(rows[1]): 0}}.items():
        run = nbtune.finetune({**fields, "row_weights": weights}, rows={"rows": rows}, runs_dir=tmp_path, name=name)
        run.wait()
        inspection = nbtune.inspect(rows).inspection
        told = [run.token_losses(inspection.ids(k)) for k in (0, 1)]
        made[name] = [max(losses[-5:]) for losses in told]
    assert made["one"][0] < made["both"][0] + 0.5
    assert made["one"][1] > made["both"][1] + 1


def test_what_does_not_fit_is_refused_before_any_work(first, tmp_path):
    before = set(first.folder.parent.iterdir())
    for wrong, said in (
        ({"adapter": {"r": 8}}, "adapter.r: 4"),
        ({"data": "other"}, "rows of its run"),
        ({"stepz": 3}, "stepz"),
    ):
        with pytest.raises(SpecError, match=said):
            first.go_on(**wrong)
    rows = {"rows": first.rows_of_the_test}
    with pytest.raises(SpecError, match=r"adapter\.r"):
        nbtune.finetune(data="rows", start_from="first", rows=rows, runs_dir=first.folder.parent, name="x")
    with pytest.raises(TrainError, match="there is no run"):
        nbtune.finetune(data="rows", start_from="nobody", rows=rows, runs_dir=first.folder.parent, name="x")
    assert set(first.folder.parent.iterdir()) == before


def test_start_from_takes_other_rows_too(first):
    rows = {"rows": [{"prompt": "Hi", "completion": "Aye, sailor."}] * 8}
    fields = {
        "data": "rows",
        "adapter": {"r": 4},
        "steps": 1,
        "batch_size": 2,
        "learning_rate": 1e-9,
        "eval": {"split": 0},
    }
    run = nbtune.finetune(**fields, start_from="first", rows=rows, runs_dir=first.folder.parent, name="others").wait()
    for name, value in weights_of(run).items():
        torch.testing.assert_close(value, weights_of(first)[name], rtol=0, atol=1e-7)


def test_a_run_at_work_is_not_gone_on_with(start, until):
    from nbtune import events

    run = start(steps=3000)
    until(run, lambda event: isinstance(event, events.Step))
    with pytest.raises(TrainError, match="is at work"):
        run.go_on()
    run.stop(wait=True)
    assert run.go_on(steps=1).wait().state == "finished"
