"""Numbers that nobody means: the plan says it, and so does the run, which does what it was told."""

from __future__ import annotations

from typing import Any

import nbtune


def test_the_plan_and_the_run_say_it(start: Any) -> None:
    run = start(learning_rate=1e-12, steps=1, adapter={"r": 300}).wait()
    assert run.state == "finished"
    rate, rank = run.plan.warnings
    assert rate.startswith("`learning_rate: 1e-12` is far below")
    assert rank == "`adapter.r: 300` is more than the model is wide (256): no more can be learnt by it"
    assert [said for what, said in run.plan.rows_of_explanation() if what == "unusual"] == [rate, rank]
    assert {rate, rank} <= {event.message for event in run.events() if event.type == "warning"}
    assert nbtune.plan(data=[{"prompt": "Hi", "completion": "Ahoy!"}] * 4, steps=1).warnings == ()
