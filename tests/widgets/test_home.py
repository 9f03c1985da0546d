"""The home: what it says of each run, what is opened in it, and what a deleted run leaves."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from memory_run import made_up_step

import nbtune
from nbtune import events as ev
from nbtune.errors import NbtuneError, TrainError
from nbtune.spec import RunSpec
from nbtune.store import folder, foreign
from nbtune.store.event_log import EventWriter
from nbtune.store.lock import Ownership
from nbtune.widgets import home
from nbtune.widgets.run_state import RunView
from nbtune.widgets.runs_overview import LISTED, Overview, line

SPEC = RunSpec(data="rows", steps=20)
NAMES = ["客服", "🚀 rocket", "عربى", "a b", "&lt;b&gt;"]


def made(root: Path, name: str, *events: ev.Event, called: str = "") -> Path:
    path = folder.create(root, name, SPEC)
    if called:  # as somebody may name a folder
        path = path.rename(root / f"{called}-{path.name.rpartition('-')[2]}")
    writer = EventWriter(path / "events.jsonl", owner=False)
    for event in events:
        writer(event)
    writer.close()
    return path


def said(state: str, steps: int = 12) -> list[ev.Event]:
    steps_said = [made_up_step(k, 20) for k in range(1, steps + 1)]
    best = ev.Eval(step=steps, loss=0.75, best=True)
    return [ev.State(state="running", total_steps=20), *steps_said, best, ev.State(state=state, step=steps)]


@pytest.fixture
def panel(tmp_path):
    made_panel = home(nbtune.attach, nbtune.plan, nbtune.finetune, {}, tmp_path)
    yield made_panel
    made_panel.close()


def until(widget, what):
    seen = threading.Event()
    look = lambda _=None: what(widget) and seen.set()  # noqa: E731
    widget.observe(look)
    look()
    assert seen.wait(240), (widget.opened, widget.trouble)


def test_each_run_says_where_it_stands_what_it_came_to_and_how_big_it_is(tmp_path):
    made(tmp_path, "first", *said("finished"))
    lost = made(tmp_path, "second", *said("running")[:-1])
    empty = made(tmp_path, "third")
    told = []
    Overview(tmp_path).look(told.append)
    assert "line" not in told[0][0]  # where they stand comes first
    third, second, first = told[-1]
    assert (first["state"], first["step"], first["best"]) == ("finished", 12, 0.75)
    assert first["line"][0] == 100
    assert min(first["line"]) == 0
    assert first["bytes"] > 1000
    assert first["model"] == SPEC.model
    assert (second["key"], second["state"]) == (lost.name, "interrupted")  # nobody works on it any more
    assert (third["key"], third["step"], third["best"], third["line"]) == (empty.name, 0, None, [])


def test_what_a_run_cannot_do_is_not_offered(tmp_path):
    made(tmp_path, "failed", *said("failed"))
    theirs = made(tmp_path, "theirs", *said("stopped"))
    foreign.keep(theirs, foreign.Foreign("SFTTrainer", "trl"), {})
    (theirs / "adapter").mkdir()
    saved = made(tmp_path, "saved", *said("stopped"))
    step = saved / "checkpoints" / "step-00000009"
    step.mkdir()
    (step / "progress.json").write_text("{}")
    told = []
    Overview(tmp_path).look(told.append)
    found = {run["name"]: run for run in told[-1]}
    assert {name: run["anew"] for name, run in found.items()} == {"saved": False, "theirs": True, "failed": True}
    assert {"chat", "export"} < set(found["failed"]["never"])
    assert "resume" in found["theirs"]["never"]
    assert found["saved"]["never"] == []


def test_names_of_any_kind_are_listed_and_a_damaged_run_hides_no_other(tmp_path):
    for name in NAMES:
        made(tmp_path, "x", *said("finished", 2), called=name)
    bad = made(tmp_path, "bad")
    (bad / "environment.json").write_text('{"created": null}')
    told = []
    Overview(tmp_path).look(told.append)
    found = {run["name"]: run for run in told[-1]}
    assert set(found) == {*NAMES, "bad"}
    assert "created" in found["bad"]["trouble"]


def test_what_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    path = made(tmp_path, "a", *said("stopped"))
    overview, told = Overview(tmp_path), []
    overview.look(told.append)
    read = []
    monkeypatch.setattr(Overview, "_measured", lambda _, path: read.append(path.name) or {})
    overview.look(told.append)
    assert read == []
    EventWriter(path / "events.jsonl", owner=False)(ev.State(state="finished", step=12))
    overview.look(told.append)
    assert read == [path.name]
    assert told[-1][0]["state"] == "finished"


def test_of_a_run_at_work_only_what_is_new_is_read(tmp_path, monkeypatch):
    path = made(tmp_path, "a", *said("running")[:-1])
    overview, told, read = Overview(tmp_path), [], []
    add = RunView.add
    monkeypatch.setattr(RunView, "add", lambda view, events: read.append(len(events)) or add(view, events))
    writer = EventWriter(path / "events.jsonl", owner=False)
    with Ownership(path):
        overview.look(told.append)
        writer(made_up_step(13, 20))
        overview.look(told.append)
        writer(ev.Eval(step=13, loss=0.5, best=True))
        overview.look(told.append)
    assert read == [14, 1, 1]
    writer(ev.State(state="finished", step=13))
    overview.look(told.append)
    fresh = []
    Overview(tmp_path).look(fresh.append)
    assert told[-1] == fresh[-1]
    assert (told[-1][0]["step"], told[-1][0]["best"]) == (13, 0.5)


def test_of_very_many_the_newest_are_listed_and_all_are_counted(tmp_path):
    template = made(tmp_path, "run", *said("finished", 1))
    for k in range(LISTED + 5):
        shutil.copytree(template, tmp_path / f"run-{k:06x}")
    overview, told = Overview(tmp_path), []
    overview.look(told.append)
    assert len(told[-1]) == LISTED
    assert overview.found == LISTED + 6


@pytest.mark.parametrize("losses", [[], [1.0], [2.0, 2.0], [float("nan"), 1.0, float("inf"), 3.0]])
def test_a_line_has_only_numbers_of_its_range(losses):
    assert [y for y in line(losses) if not 0 <= y <= 100] == []


def test_one_thing_is_open_in_place_of_the_list(panel, tmp_path):
    first, second = (made(tmp_path, name, *said("finished")) for name in "ab")
    panel.do_look()
    until(panel, lambda p: len(p.runs) == 2)
    panel.do_open(first.name)
    until(panel, lambda p: p.opened.get("what") == "monitor")
    monitor = panel._open
    assert panel.opened["name"] == "a"
    panel.do_compare([first.name, second.name])
    until(panel, lambda p: p.opened.get("what") == "compare")
    assert monitor.comm is None  # it was closed
    panel.do_close()
    assert panel.opened == {}
    panel.do_new()
    until(panel, lambda p: p.opened.get("what") == "new")
    panel._open.do_check({"data": "nbtune/json-answers", "steps": "7"})
    panel.do_close()
    panel.do_new()
    until(panel, lambda p: p.opened.get("what") == "new")
    assert panel._open.values["steps"] == 7  # as it was left
    with pytest.raises(NbtuneError, match="not here any more"):
        panel.do_open("../../etc")
    with pytest.raises(NbtuneError, match="does not open"):
        panel.do_open(first.name, "cake")


def test_runs_are_deleted_and_one_at_work_is_not(panel, tmp_path):
    keys = [made(tmp_path, name, *said("finished")).name for name in "abc"]
    panel.do_look()
    until(panel, lambda p: len(p.runs) == 3)
    with Ownership(tmp_path / keys[2]):
        panel.do_delete(keys)
        until(panel, lambda p: "at work" in p.trouble)
    until(panel, lambda p: [run["key"] for run in p.runs] == keys[2:])
    assert [path.name for path in tmp_path.iterdir()] == keys[2:]
    panel.do_delete(keys[2:])
    until(panel, lambda p: p.runs == [])
    assert panel.trouble == "", "what failed before is not said any more"


def test_a_run_that_is_half_deleted_is_no_run_and_goes_with_the_next(tmp_path):
    half = made(tmp_path, "half")
    half.rename(tmp_path / f".{half.name}.0a1b2c3d.gone")
    other = made(tmp_path, "other")
    assert folder.all_folders(tmp_path) == [other]
    nbtune.attach(other).delete()
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_run_is_deleted_and_what_it_leads_to_stays(tmp_path):
    real = made(tmp_path / "elsewhere", "real")
    link = tmp_path / "runs" / "linked-abcdef"
    link.parent.mkdir()
    link.symlink_to(real, target_is_directory=True)
    nbtune.attach(link).delete()
    assert (real / "spec.yaml").is_file()
    assert not link.is_symlink()


def test_a_run_at_work_cannot_be_deleted(tmp_path):
    path = made(tmp_path, "busy")
    with Ownership(path), pytest.raises(TrainError, match="at work"):
        nbtune.attach(path).delete()
    assert (path / "spec.yaml").is_file()
