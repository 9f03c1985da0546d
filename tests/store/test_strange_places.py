"""Runs in folders whose names are patterns, have spaces or no letters: all that looks for files there finds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nbtune
from nbtune.errors import SpecError
from tests.support.every import every

ROWS = [{"prompt": f"Hi {number}", "completion": "Ahoy!"} for number in range(12)]
PLACE, FOLDER = "my [exp] é 文 {x} * ?", "b [1] é *-abcdef"


@pytest.fixture(autouse=True)
def _in_a_strange_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PLACE).mkdir()
    monkeypatch.chdir(tmp_path / PLACE)
    monkeypatch.setenv("NBTUNE_RUNS", str(tmp_path / PLACE / "runs [1]"))


def test_a_run_is_found_used_and_taken_home_from_there() -> None:
    Path("rows [1].jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    spec = {"data": "rows [1].jsonl", "steps": 2, "batch_size": 2, "eval": {"split": 0}, "checkpoint": {"every": 1}}
    run = nbtune.finetune(spec, name="a").wait()
    assert run.state == "finished", run.error
    run.free()
    renamed = run.folder.parent / FOLDER  # by hand
    run.folder.rename(renamed)
    for which in ("b [1] é *", "abcdef", FOLDER, str(renamed)):
        found = nbtune.attach(which)
        assert found.folder == renamed
    assert [each.name for each in nbtune.runs()] == ["b [1] é *"]
    assert found.generate("Hi", max_new_tokens=2, step=1)
    merged = found.export.merged()
    files = [merged, found.export.adapter(), *found.export.gguf("q8_0", verify=False)]
    assert every(file.path.is_relative_to(renamed / "exports") and file.path.exists() for file in files)
    again = nbtune.finetune(model=str(merged.path), data="rows [1].jsonl", steps=1, name="again").wait()
    assert again.state == "finished", again.error


@pytest.mark.parametrize(
    "name", ["a[b]", "a*", "a?", "a b", "é", "文", "..", "-x", "a/b", "a\n", "a" * 65, "{a}", "~", ""]
)
def test_a_name_that_would_be_another_s_pattern_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="cannot be a run's name"):
        nbtune.finetune(data=ROWS, steps=1, name=name)
    assert not list(Path().glob("runs*/*"))
