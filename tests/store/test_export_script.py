"""A run as a script and as YAML: what is written can be read back, whatever is in the spec."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from nbtune.data import resolve, snapshot
from nbtune.spec import from_mapping, from_yaml
from nbtune.store.export_script import _where, as_script, as_yaml
from nbtune.store.folder import create

ROWS = [{"prompt": "Hi", "completion": "Ho"}]


def made(root: Path, body: dict[str, Any], **names: Any) -> Path:
    """A run's folder with its rows, as `finetune` lays it out."""
    spec = from_mapping(body)
    folder = create(root / "runs", "demo", spec)
    sources = resolve(spec.data, names, base_dir=root)
    if spec.eval.data is not None:
        sources += resolve([spec.eval.data], names, base_dir=root, role="eval")
    snapshot(sources, folder / "data")
    return folder


def spec_in(script: str) -> Any:
    """What SPEC is in a script."""
    for node in ast.parse(script).body:
        if isinstance(node, ast.Assign):
            return from_yaml(ast.literal_eval(node.value))
    return None


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("match", ["plain", 'three """ quotes', "back\\slash", "a\nb", "\x1b[31m", "ÄÖ 漢字 \u200b"])
def test_any_text_comes_back(tmp_path: Path, match: str) -> None:
    folder = made(tmp_path, {"data": "nbtune/town", "train_spans": [{"match": match, "train": False}]})
    spec = spec_in(as_script(folder))
    assert spec == from_yaml(as_yaml(folder))
    assert spec.train_spans[0].match == match


def test_rows_of_variables_are_files_and_files_stay(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    body = {"data": [{"source": "rows", "weight": 2.0}, "more.jsonl", "nbtune/town"], "eval": {"data": "held"}}
    folder = made(tmp_path, body, rows=ROWS, held=ROWS)
    spec = from_yaml(as_yaml(folder))
    assert [s.source for s in spec.data] == [
        f"file:runs/{folder.name}/data/rows.jsonl",
        "file:more.jsonl",
        "nbtune/town",
    ]
    assert spec.data[0].weight == 2.0
    assert spec.eval.data.source == f"file:runs/{folder.name}/data/held.jsonl"
    found = resolve([*spec.data, spec.eval.data], base_dir=tmp_path)
    assert [list(source.rows) for source in (found[0], found[1], found[3])] == [ROWS] * 3


def test_rows_through_a_function_of_the_notebook_are_repeated_from_the_folder(tmp_path: Path) -> None:
    folder = made(tmp_path, {"data": {"source": "rows", "function": "change"}}, rows=ROWS, change=dict)
    script = as_script(folder)
    assert f"nbtune.repeat('runs/{folder.name}')" in script
    assert "function: change" in ast.get_docstring(ast.parse(script))


@pytest.mark.parametrize("home", ["here", "nobody"])
@pytest.mark.parametrize("cwd", ["here", "here/runs", "elsewhere"])
def test_the_lines_that_use_a_run_name_its_folder_from_wherever_they_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, cwd: str
) -> None:
    """NBTUNE_RUNS, a job's working folder: runs need not lie under where one is."""
    import os

    folder = tmp_path / "here" / "runs" / "demo-1" / "adapter"
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / home))
    monkeypatch.chdir(tmp_path / cwd)
    said = _where(folder)
    assert Path(eval(said, {"os": os})).samefile(folder)  # noqa: S307 — the tests' own words
    assert home == "nobody" or str(tmp_path / home) not in said
