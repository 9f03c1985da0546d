"""What a monitor offers: no button that could do nothing for the run that it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbtune import events as ev
from nbtune.spec import RunSpec
from nbtune.store import folder, foreign
from nbtune.store.event_log import EventWriter
from nbtune.store.run_reader import RunReader
from nbtune.widgets.run_state import Watched

NOTHING_SAVED = {"chat", "export", "losses", "push"}


def status(root: Path, end: str = "finished", *, whose: str = "", saved: bool = True, **spec: Any) -> dict[str, Any]:
    path = folder.create(root, "x", RunSpec(data="rows", **spec))
    if whose:
        foreign.keep(path, foreign.Foreign(whose, "trl"), {})
    if saved:
        (path / "adapter").mkdir()
    write = EventWriter(path / "events.jsonl", owner=False)
    write(ev.State(state="running", total_steps=9))
    write(ev.Step(step=3, loss=1.0))
    write(ev.State(state=end, step=3))
    watched = Watched(RunReader(path))
    watched.close()
    return watched.view.status()


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_a_run_of_ours_with_weights_has_all(tmp_path: Path, end: str) -> None:
    found = status(tmp_path, end)
    assert (found["never"], found["resumable"]) == ([], end != "finished")


@pytest.mark.parametrize("end", ["stopped", "failed"])
def test_nothing_is_asked_or_taken_of_a_run_that_saved_nothing(tmp_path: Path, end: str) -> None:
    found = status(tmp_path, end, saved=False)
    assert (set(found["never"]), found["resumable"]) == (NOTHING_SAVED, True)


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_another_trainers_run_has_no_rows_here_and_its_trainer_goes_on(tmp_path: Path, end: str) -> None:
    found = status(tmp_path, end, whose="SFTTrainer")
    assert (found["never"], found["resumable"]) == (["losses", "rateForm"], False)


def test_a_model_of_scores_writes_nothing(tmp_path: Path) -> None:
    assert status(tmp_path, method="reward")["never"] == ["chat", "losses"]


def test_a_checkpoint_is_enough(tmp_path: Path) -> None:
    path = folder.create(tmp_path, "y", RunSpec(data="rows"))
    step = path / "checkpoints" / "step-00000002"
    step.mkdir()
    (step / "progress.json").write_text("{}")
    EventWriter(path / "events.jsonl", owner=False)(ev.State(state="stopped", step=2))
    watched = Watched(RunReader(path))
    watched.close()
    assert watched.view.status()["never"] == []
