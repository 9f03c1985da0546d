"""What a run does with its data: several sources, a mix, and rows that arrive while it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import events
from nbtune.data.prepare import prepare as preparing
from nbtune.store.row_losses import MeasuredRows
from tests.engine.conftest import SPEC
from tests.support.every import every


def _rows(word: str, count: int = 60) -> list[dict[str, str]]:
    return [{"prompt": f"ask {i}", "completion": f"{word} {i}"} for i in range(count)]


def _run(name: str, rows: dict[str, Any], **fields: Any) -> Any:
    spec = {**SPEC, "steps": 6, **fields}
    return nbtune.finetune(spec, name=name, rows=rows, runs_dir="runs").wait()


def test_held_out_rows_are_measured_source_by_source() -> None:
    rows = {"some": _rows("say"), "more": _rows("a much longer answer with other words", 30)}
    fields = {"data": [{"source": "some", "weight": 2}, {"source": "more"}], "mix": {"by": "tokens"}}
    run = _run("two", rows, eval={"split": 0.2, "every": 3}, **fields)
    measured = [event for event in run.events() if isinstance(event, events.Eval)]
    assert [set(event.sources) for event in measured] == [{"some", "more"}] * 2
    for event in measured:
        assert min(event.sources.values()) < event.loss < max(event.sources.values())
    measured_rows = MeasuredRows(run, base=False)
    measured_rows.wait()
    held = [row for row in measured_rows.sorted() if row.part == "eval"]
    tokens = sum(row.trained for row in held)
    assert measured[-1].tokens == tokens
    assert measured[-1].loss == pytest.approx(sum(row.loss * row.trained for row in held) / tokens, abs=1e-3)
    alone = _run("one", rows, data="some", eval={"split": 0.2, "every": 3})
    assert every(not event.sources for event in alone.events() if isinstance(event, events.Eval))


def test_a_run_learns_from_rows_as_they_arrive_and_goes_on_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "AT_ONCE", 100)
    monkeypatch.setattr(preparing, "SHARDS", {"first": 16, "most": 64})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows("say", 300)))
    whole = _run("whole", {}, data="rows.jsonl", eval={"every": 3})
    assert whole.state == "finished"
    losses = whole.history["loss"].to_dict()
    assert whole.history["eval_loss"].notna().sum() == 2
    again = _run("again", {}, data="rows.jsonl", eval={"every": 3})  # from the cache this time
    assert again.history["loss"].to_dict() == losses
    part = nbtune.finetune(
        {**SPEC, "steps": 6, "data": "rows.jsonl", "eval": {"every": 3}, "checkpoint": {"every": 2}},
        name="part",
        runs_dir="runs",
    )
    part.stop(wait=True)
    part.resume().wait()
    assert part.history["loss"].to_dict() == pytest.approx(losses, abs=1e-6)
