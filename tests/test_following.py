"""Following one thing takes few files: docs/explanation/house.md lists those that a run goes through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbtune
from nbtune import data, models
from nbtune.spec import from_yaml
from tests.notebook.conftest import shell  # noqa: F401 — a fixture
from tests.support.follow import files_for_every, followed
from tests.support.house import PAGE

ROWS = [{"prompt": f"Question {k}?", "completion": f"Answer {k}."} for k in range(4)]
CELL = "data: rows\nsteps: 1\nbatch_size: 2\ndevice: cpu\nadapter: {type: lora, r: 2, target_modules: [q_proj]}"


def _listed(title: str) -> list[str]:
    """The numbered files under a title, without `nbtune/`."""
    section = PAGE.read_text(encoding="utf-8").split(f"**{title}")[1].split("\n\n")[1]
    return re.findall(r"^\d+\. `nbtune/([^`]+)`", section, flags=re.MULTILINE)


def test_a_row_goes_through_the_files_that_are_listed(tmp_path: Path) -> None:
    stations = (
        "data/sources/rows.py:__getitem__",
        "data/formats/sft_format.py:read",
        "data/template/chat_template.py:render",
        "data/tokenize/loss_mask.py:trained_stretches",
        "data/prepare/dataset.py:add",
        "data/batching/collate.py:pack",
    )
    spec, tokenizer = from_yaml("data: rows\neval: {split: 0}"), models.load_tokenizer("nbtune/tiny")
    with followed(*stations) as seen:
        sources = data.snapshot(data.resolve(spec.data, {"rows": ROWS}), tmp_path / "data")
        prepared = data.prepare_data(sources, tokenizer, spec=spec, max_len=128, seed=0)
        data.BatchPlan(prepared.train, micro_batch_size=2, packing=True, sequence_len=64).step(0)
    listed = _listed("A row, from its source to a packed batch")
    assert set(seen.ways) == set(stations)
    beginners = {"data/prepare/prepare.py", "data/prepare/shards.py", "data/sources/snapshot.py"}
    assert set(seen.on_the_way) - beginners == set(listed)
    assert len(listed) <= 9


def test_what_a_row_asks_on_its_way_is_listed_too(tmp_path: Path) -> None:
    """Counted strictly: every file of which a function runs once more for one row more."""
    spec, tokenizer = from_yaml("data: rows\neval: {split: 0}"), models.load_tokenizer("nbtune/tiny")

    sources = {}
    for count in (1, 40, 80):
        rows = [{"prompt": f"Question {k}?", "completion": f"Answer {k}."} for k in range(count)]
        sources[count] = data.snapshot(data.resolve(spec.data, {"rows": rows}), tmp_path / str(count))

    def prepare(count: int) -> None:
        prepared = data.prepare_data(sources[count], tokenizer, spec=spec, max_len=128, seed=0)
        data.BatchPlan(prepared.train, micro_batch_size=count, packing=True, sequence_len=64).step(0)

    listed = {*_listed("A row, from its source to a packed batch"), *_listed("What a row asks on its way")}
    by_the_step = {"data/batching/sampler.py"}
    strictly = files_for_every(prepare)
    assert strictly == listed - by_the_step
    assert len(strictly) <= 13


def test_a_spec_goes_through_the_files_that_are_listed(shell: Any) -> None:  # noqa: F811
    shell.user_ns["rows"] = ROWS
    stations = (
        "spec/yaml.py:from_mapping",
        "store/folder.py:create",
        "store/folder.py:read_spec",
        "engine/engine.py:prepare",
        "train/loop.py:train",
    )
    with followed(*stations) as seen:
        shell.run_cell_magic("finetune", "", CELL)
        nbtune.runs()[0].wait()
    listed = _listed("The spec, from a cell to the loop")
    assert set(seen.ways) == set(stations)
    assert set(seen.on_the_way) - {"engine/launcher.py", "train/loop.py"} == set(listed)
    assert len(listed) <= 6
