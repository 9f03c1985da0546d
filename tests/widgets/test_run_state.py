"""What a panel knows of a run: made from events, handed out in bounded pieces."""

from __future__ import annotations

import dataclasses
import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from memory_run import MemoryRun, made_up_step

from nbtune import events as ev
from nbtune.errors import TrainError
from nbtune.widgets.metrics import COLUMNS
from nbtune.widgets.run_report import Report
from nbtune.widgets.run_state import Cursor, RunView


def told(events, **of_run):
    run = MemoryRun(**of_run)
    run.say(*events)
    view = RunView(run)
    view.add(run.events())
    return view


def columns(body, rows):
    return dict(zip(COLUMNS, np.frombuffer(rows).reshape(len(COLUMNS), body["rows"]), strict=True))


def test_a_delta_holds_what_is_new_and_moves_the_cursor():
    view, cursor = told([ev.State(state="running"), made_up_step(1), made_up_step(2)]), Cursor()
    body, rows = view.delta(cursor)
    assert (body["t"], body["i0"], body["rows"]) == ("d", 0, 2)
    assert columns(body, rows)["step"].tolist() == [1, 2]
    view.add([made_up_step(3), ev.Eval(step=3, loss=1.5, best=True)])
    body, rows = view.delta(cursor)
    assert (body["i0"], body["rows"]) == (2, 1)
    assert body["evals"] == {"i0": 0, "next": 1, "items": [{"step": 3, "loss": 1.5, "best": True}]}
    body, _ = view.delta(cursor)
    assert (body["rows"], "evals" in body) == (0, False)


def test_what_a_method_tells_is_listed_in_bounds_and_goes_back_with_the_run():
    figures = {"accuracy": 0.5, "margin": float("inf"), **{f"more {k}": 1.0 for k in range(20)}}
    told_all = [dataclasses.replace(made_up_step(k), metrics=figures) for k in range(1, 1001)]
    view = told([*told_all, ev.Eval(step=9, loss=1.0, metrics={"accuracy": 1})])
    body, _ = view.snapshot()
    items = body["metrics"]["items"]
    assert len(items) <= 120
    assert items[-1]["step"] == 1000
    assert items[0]["values"].keys() == {"accuracy", "margin", *(f"more {k}" for k in range(10))}
    assert items[0]["values"]["margin"] is None
    assert body["evals"]["items"][0]["metrics"] == {"accuracy": 1}
    view.add([made_up_step(10)])  # a method of another kind, or a run that tells nothing
    assert [item["step"] for item in view.snapshot()[0]["metrics"]["items"] if item["step"] >= 10] == []


def test_after_a_hundred_thousand_steps_updates_and_pictures_are_small():
    view, cursor = told([made_up_step(k, 100_000) for k in range(1, 100_001)], total_steps=100_000), Cursor()
    body, rows = view.delta(cursor)  # far behind: everything, merged
    assert len(rows) + len(json.dumps(body)) <= 50_000
    view.add([made_up_step(100_000 + k) for k in range(1, 501)])  # 2,000 steps a second
    body, rows = view.delta(cursor)
    assert len(rows) + len(json.dumps(body)) <= 50_000
    body, rows = view.snapshot()
    assert len(rows) + len(json.dumps(body)) <= 50_000


def test_a_resumed_run_goes_back_and_sends_a_whole_picture():
    view, cursor = told([made_up_step(k) for k in range(1, 11)]), Cursor()
    view.delta(cursor)
    view.add([made_up_step(8), made_up_step(9)])
    body, rows = view.delta(cursor)
    assert (body["t"], body["generation"]) == ("s", 1)
    assert columns(body, rows)["step"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_lists_are_bounded_and_keep_the_best():
    losses = [abs(k - 700) / 100 + 1 for k in range(1000)]
    best = float("inf")
    events = []
    for k, loss in enumerate(losses):
        events.append(ev.Eval(step=k + 1, loss=loss, best=loss < best))
        best = min(best, loss)
    body, _ = told(events).snapshot()
    evals = body["evals"]["items"]
    assert len(evals) <= 202
    assert min(evals, key=lambda item: item["loss"])["step"] == 701
    assert evals[-1]["step"] == 1000


def test_status_counts_the_time_that_the_run_lived():
    view = told(
        [
            ev.State(state="preparing", time=100.0),
            ev.State(state="running", time=105.0, total_steps=200),
            ev.Step(step=1, loss=1.0, seconds=2.0, time=110.0),
            ev.State(state="stopped", time=120.0),
            ev.State(state="preparing", time=500.0),
            ev.Step(step=2, loss=1.0, seconds=2.0, time=505.0),
            ev.State(state="finished", time=510.0),
        ]
    )
    status = view.status()
    assert status["elapsed"] == 30.0
    assert (status["state"], status["live"], status["step"], status["total"]) == ("finished", False, 2, 200)
    assert status["eta"] == pytest.approx(198 * 2.0)


def test_before_the_first_step_the_plan_says_how_long_it_will_take():
    assert told([ev.State(state="preparing")]).status()["eta"] == 30.0


@pytest.mark.parametrize(("device", "gpu", "vram"), [("cuda", True, True), ("mps", True, False), ("cpu", False, False)])
def test_a_macs_gpu_has_no_memory_of_its_own(device, gpu, vram):
    run = MemoryRun()
    run.plan.device = device
    run.say(ev.State(state="running", total_steps=200), made_up_step(1))
    view = RunView(run)
    view.add(run.events())
    assert (view.status()["gpu"], view.status()["vram"]) == (gpu, vram)
    assert dict(Report(run).facts())[f"Peak {'VRAM' if vram else 'RAM'}"].endswith("GiB")


def test_a_failed_run_says_why_and_what_to_do():
    view = told([ev.State(state="failed", time=3.0)])
    view.run.error = TrainError("out of memory", place="step 7", fix="set micro_batch_size: 1")
    note = view.status()["error"]
    assert (note["message"], note["fix"], note["level"]) == (
        "step 7: out of memory",
        "set micro_batch_size: 1",
        "error",
    )


def test_an_export_that_moves_on_is_one_line():
    view, cursor = told([]), Cursor()
    view.add([ev.Export(kind="gguf", done=0.0), ev.Export(kind="gguf", done=0.6)])
    view.add([ev.Export(kind="q8_0", path="exports/a.gguf")])
    body, _ = view.delta(cursor)
    assert [(item["kind"], item["done"]) for item in body["exports"]["items"]] == [("q8_0", 1.0)]
    view.add([ev.Export(kind="gguf", done=0.0)])
    view.note("no room")
    body, _ = view.delta(cursor)
    assert len(body["exports"]["items"]) == 1


def test_what_the_loaded_model_can_do_takes_the_place_of_what_the_plan_said():
    view, cursor = told([ev.Abilities(tried="small", said={"packing": "safe", "GGUF": "can be written"})]), Cursor()
    view.delta(cursor)
    assert view.delta(cursor)[0].get("abilities") is None
    view.add([ev.Abilities(tried="loaded", said={"packing": "\x1b[31mleaks"})])
    body, _ = view.delta(cursor)
    assert body["abilities"]["whole"]
    assert body["abilities"]["items"] == [{"what": "packing", "words": "leaks"}]


def test_hostile_text_is_cut_and_stripped_of_controls_only():
    line = "<img src=x onerror=alert(1)>\x1b[31m\x00" + "x" * 1_000_000
    body, _ = told([ev.Warning(message=line), ev.Sample(step=0, prompt=line, answer=line)]).snapshot()
    note, sample = body["notes"]["items"][0], body["samples"]["items"][0]
    assert note["message"].startswith("<img src=x onerror=alert(1)>xxx")
    assert len(json.dumps(body)) < 5_000
    assert "\x00" not in sample["answer"]
    assert "characters" in sample["answer"]


def test_not_a_number_is_valid_json():
    body, _ = told([ev.Eval(step=1, loss=float("nan")), ev.Step(step=1, loss=float("nan"))]).snapshot()
    assert json.loads(json.dumps(body, allow_nan=False))["evals"]["items"][0]["loss"] is None


def test_of_groups_the_best_and_the_worst_stand_among_the_samples_of_the_newest_steps():
    groups = [
        ev.Group(step=k, prompt="Say tar", answers=("tar", "so", "no"), rewards=(1.0, 0.5, 0.0)) for k in range(1, 9)
    ]
    view = told(
        [ev.Sample(step=0, prompt="Hi", answer="Aye"), *groups, ev.Group(step=9, prompt="", answers=(), rewards=())]
    )
    shown = view.lists["samples"]
    assert shown[0]["prompt"] == "Hi"
    assert [(item["step"], item["prompt"]) for item in shown[-2:]] == [(8, "A group's best"), (8, "A group's worst")]
    assert [item["answer"] for item in shown[-2:]] == ["1 for 'tar', asked 'Say tar'", "0 for 'no', asked 'Say tar'"]
    assert len({item["step"] for item in shown[1:]}) <= 4
    body, _ = view.delta(Cursor())
    assert body["samples"]["items"][-1]["group"] is True


def test_a_run_is_named_so_that_a_kernel_that_starts_anew_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = MemoryRun()
    run.folder = tmp_path / "of my own" / "demo-m3m0ry"
    shell = SimpleNamespace(starting_dir=str(tmp_path))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.chdir(tmp_path.parent)  # what a cell did
    said = RunView(run).snapshot()[0]["status"]["folder"]
    assert shlex.split(said) == ["of my own/demo-m3m0ry"]
    run.folder = tmp_path / "runs" / "demo\n!rm -rf ."  # a folder that somebody else sent
    assert "\n" not in RunView(run).snapshot()[0]["status"]["folder"]


@pytest.mark.parametrize(("message", "shown"), [("a row is cut", "a row is cut:"), ("It is hot.", "It is hot.")])
def test_a_notes_cause_stands_behind_a_colon_or_a_sentence(message, shown):
    view = told([ev.Warning(message=message, cause="it has 900 tokens", fix="")])
    (note,) = view.snapshot()[0]["notes"]["items"]
    assert (note["message"], note["cause"]) == (shown, "it has 900 tokens")
