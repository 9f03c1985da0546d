"""The rate that the plan chose is the run's: resumed, repeated, as a script, and gone on with; also an older run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbtune
from nbtune import events
from nbtune.spec import from_yaml

SHORT = 1e-2  # of the embedded model, in so few steps
UNSET: dict[str, Any] = {"learning_rate": None, "lr_scheduler_type": "constant", "warmup_ratio": 0}


def _losses(run: Any) -> list[float]:
    return [event.loss for event in run.events() if isinstance(event, events.Step)]


def _rates(run: Any) -> set[float]:
    return {event.learning_rate for event in run.events() if isinstance(event, events.Step)}


def _as_before_the_rule(folder: Path) -> None:
    """What an older nbtune left there."""
    file = folder / "plan.json"
    body = json.loads(file.read_text())
    del body["hidden_size"], body["learning_rate_reason"]
    file.write_text(json.dumps({**body, "learning_rate": 2e-4}))
    file = folder / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 1}))


def test_what_the_plan_chose_is_trained_with_and_repeated(start: Any, tmp_path: Path) -> None:
    run = start(**UNSET, steps=4).wait()
    assert run.spec.learning_rate is None
    assert (run.plan.learning_rate, _rates(run)) == (SHORT, {SHORT})
    where = {"runs_dir": tmp_path / "again"}
    written = start(**{**UNSET, "learning_rate": SHORT}, steps=4, name="written").wait()
    again = [nbtune.finetune(from_yaml(run.yaml()), **where).wait(), nbtune.repeat(run.folder, **where).wait()]
    assert "learning_rate" not in run.yaml()
    assert [_losses(one) for one in [written, *again]] == [_losses(run)] * 3


def test_an_older_run_keeps_the_rate_it_had(start: Any, tmp_path: Path) -> None:
    run = start(**UNSET, steps=6, checkpoint={"every": 2, "keep": 9}).wait()
    _as_before_the_rule(run.folder)
    run.resume(step=4).wait()
    assert list(run.history.learning_rate) == [SHORT] * 4 + [2e-4] * 2
    assert from_yaml(run.yaml()).learning_rate == 2e-4
    assert "learning_rate: 0.0002" in run.script()
    again = nbtune.repeat(run.folder, runs_dir=tmp_path / "again").wait()
    assert _rates(again) == {2e-4}
    assert _rates(run.go_on(steps=1, name="more").wait()) == {2e-4}


def test_going_on_with_another_method_is_planned_anew(start: Any) -> None:
    rows = [{"prompt": f"Say {k}", "chosen": f"It is {k}.", "rejected": "No."} for k in range(8)]
    run = start(**UNSET, steps=1, method="orpo", rows=rows).wait()
    _as_before_the_rule(run.folder)
    assert _rates(run.go_on(steps=1, method="simpo", name="more").wait()) == {2.5e-4}


def test_a_plan_that_cannot_be_read_does_not_hide_the_spec(start: Any) -> None:
    run = start(**UNSET, steps=1).wait()
    (run.folder / "plan.json").write_text('{"learning_rate": "much"}')
    assert from_yaml(run.yaml()).steps == 1
