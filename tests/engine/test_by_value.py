"""Rows by value are rows by name: the same plan, the same bytes in the run's folder, the same losses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pytest

import nbtune
from nbtune import events
from nbtune.errors import TrainError
from nbtune.spec import from_yaml
from nbtune.widgets.row_inspection import Inspection
from tests.engine.conftest import ROWS, SPEC

FIELDS = {**{key: value for key, value in SPEC.items() if key != "data"}, "steps": 2, "eval": {"every": 1}}
FREE = {"available_bytes": 0}  # changes from one moment to the next
HELD: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "pandas": lambda: pd.DataFrame(ROWS),
    "polars": lambda: pl.DataFrame(ROWS),
    "dataset": lambda: datasets.Dataset.from_list(ROWS),
    "iterator": lambda: (row for row in ROWS),
}


def _facts(run: Any) -> tuple[Any, ...]:
    files = {path.name: path.read_bytes() for path in (run.folder / "data").iterdir() if path.name != "sources.json"}
    history = run.history
    return files, history["loss"].to_list(), history["eval_loss"].dropna().to_list(), run.yaml().count("file:")


@pytest.mark.parametrize("holder", HELD)
def test_a_value_is_what_its_name_is(holder: str) -> None:
    value, apart = HELD[holder](), ROWS[:5]
    spec = {**FIELDS, "data": value, "eval": {"every": 1, "data": apart}}
    named = {**FIELDS, "data": "var:rows", "eval": {"every": 1, "data": "var:eval_rows"}}
    rows = {"rows": value, "eval_rows": apart}
    assert nbtune.validate(spec) == nbtune.validate(named, rows=rows)
    plans = [nbtune.plan(**spec), nbtune.plan(named, rows=rows)]
    assert vars(plans[0]) | FREE == vars(plans[1]) | FREE
    seen = [Inspection.of(*given).row(3) for given in ((value,), ("rows", rows), ({"data": value},))]
    assert seen[0] == seen[1] == seen[2]
    by_value = nbtune.finetune(spec, name="value").wait()
    by_name = nbtune.finetune(named, rows=rows, name="name").wait()
    assert _facts(by_value) == _facts(by_name)
    assert by_value.spec == by_name.spec
    assert nbtune.repeat(by_value.folder).wait().history["loss"].to_list() == by_value.history["loss"].to_list()


def test_a_mix_of_values_and_files() -> None:
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:9]), encoding="utf-8")
    run = nbtune.finetune(FIELDS, data=[pd.DataFrame(ROWS), "more.jsonl", ROWS[:4]], name="mix").wait()
    assert run.state == "finished"
    assert [source.source for source in run.spec.data] == ["var:rows", "more.jsonl", "var:rows_2"]
    again = nbtune.finetune(from_yaml(run.yaml()), name="again").wait()
    assert again.history["loss"].to_list() == run.history["loss"].to_list()
    assert "rows (the author's own rows)" in run.model_card("me/mix").replace("var:", "?")


def test_other_rows_under_the_same_name_are_not_attached_to(until: Any) -> None:
    spec = {**FIELDS, "steps": 10_000}
    run = nbtune.finetune(spec, data=list(ROWS), name="demo")
    try:
        until(run, lambda event: isinstance(event, events.Step))
        assert nbtune.finetune(spec, data=list(ROWS), name="demo").folder == run.folder
        assert nbtune.finetune(spec, data="var:rows", rows={"rows": list(ROWS)}, name="demo").folder == run.folder
        others = [{**ROWS[0], "completion": "It is something else."}, *ROWS[1:]]
        for fields in ({"data": others}, {"data": "var:rows", "rows": {"rows": others}}):
            with pytest.raises(TrainError, match=r"at work on other rows \(rows\)") as caught:
                nbtune.finetune(spec, name="demo", **fields)
            assert "--restart" in caught.value.fix
    finally:
        run.stop(wait=True)
