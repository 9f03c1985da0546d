"""A run that goes on from another one's weights, with some rows left out or counted more."""

import math

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


def test_the_plan_refuses_what_the_run_would(first, tmp_path):
    rows, where = {"rows": first.rows_of_the_test}, {"runs_dir": first.folder.parent}
    about = {"data": "rows", "start_from": "first", "rows": rows, **where}
    for ask in (nbtune.validate, nbtune.plan):
        with pytest.raises(SpecError, match=r"`adapter\.r: 4`, this spec"):
            ask(**about)
        with pytest.raises(SpecError, match=r"`model: nbtune/tiny`, this spec"):
            ask(**{**about, "model": "acme/other", "adapter": {"r": 4}})
    assert nbtune.plan(**about, adapter={"r": 4}).total_steps > 0
    for more in ({"alpha": 8}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 9}}):  # of the same shapes
        with pytest.raises(SpecError, match=f"`adapter.{next(iter(more))}: "):
            nbtune.validate(**about, adapter={"r": 4, **more})


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


QUESTIONS = [f"What is {k}?" for k in range(16)]
PAIRS = [{"prompt": q, "chosen": f"It is {q[8:-1]}, sailor.", "rejected": "I do not know."} for q in QUESTIONS]
JUDGED = [
    {"prompt": p["prompt"], "completion": p[k], "label": k == "chosen"} for p in PAIRS for k in ("chosen", "rejected")
]
AT_FIRST = {"dpo": math.log(2), "ipo": 25.0, "kto": 0.5}  # nothing is preferred yet
SMALL = {"data": "rows", "batch_size": 4, "learning_rate": 5e-3, "eval": {"split": 0}}


@pytest.fixture(scope="module")
def imitated(tmp_path_factory):
    """Runs of imitation to start from, by adapter."""
    root, made = tmp_path_factory.mktemp("imitated"), {}
    rows = {"rows": [{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS]}

    def begin(adapter):
        if adapter not in made:
            fields = {**SMALL, "steps": 6, "adapter": {"type": adapter, "r": 4}}
            made[adapter] = nbtune.finetune(fields, rows=rows, runs_dir=root, name=adapter).wait()
        return made[adapter]

    return begin


def prefer(imitated, method, name, **fields):
    rows = {"rows": JUDGED if method == "kto" else PAIRS}
    fields = {**SMALL, "method": method, "adapter": imitated.spec.adapter, "start_from": imitated.name, **fields}
    return nbtune.finetune(fields, rows=rows, runs_dir=imitated.folder.parent, name=name).wait()


@pytest.mark.parametrize(
    ("method", "adapter", "fields"),
    [
        ("dpo", "lora", {}),
        ("ipo", "lora", {"packing": True, "sequence_len": 256}),
        ("kto", "lora", {}),
        ("dpo", "dora", {}),
        ("dpo", "qlora", {}),
        ("dpo", "lora", {"accelerate": False, "micro_batch_size": 1}),
        ("kto", "lora", {"accelerate": False}),
    ],
)
def test_the_reference_is_what_the_run_starts_from(imitated, method, adapter, fields):
    """So nothing is preferred at first, and what is learnt moves away from there."""
    if adapter == "qlora":
        pytest.importorskip("bitsandbytes")
    start = imitated(adapter)
    run = prefer(start, method, f"{method}-{adapter}-{len(fields)}", steps=4, **fields)
    losses = run.history["loss"].tolist()
    assert losses[0] == pytest.approx(AT_FIRST[method], rel=1e-5)
    assert losses[-1] < losses[0]


def test_a_resumed_one_keeps_its_reference(imitated):
    start, fields = imitated("lora"), {"steps": 4, "checkpoint": {"every": 2, "keep": 9}}
    whole = prefer(start, "dpo", "whole", **fields)
    run = prefer(start, "dpo", "again", **fields)
    run.resume(step=2).wait()
    assert run.history["loss"].tolist()[-2:] == whole.history["loss"].tolist()[-2:]
    assert run.state == "finished"
