"""Tasks of lm-evaluation-harness, of the model in memory: figures are those of its own command on the merged one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import events
from nbtune.errors import TrainError
from tests.engine.conftest import ROWS

SMOLLM2 = os.environ.get("NBTUNE_TEST_SMOLLM2", "")
WITH_SMOLLM2 = pytest.mark.skipif(not SMOLLM2, reason="NBTUNE_TEST_SMOLLM2 names no file")

CHOICE = """\
task: tides
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/tides.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITTEN = """\
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/sums.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}, {{metric: bleu}}]
"""


def tasks_in(folder: Path) -> Path:
    """Write two tasks and their rows."""
    folder.mkdir()
    asked = [
        {"question": row["prompt"], "choices": [row["completion"], "It is high tide.", "No."], "answer": 0}
        for row in ROWS[:6]
    ]
    for name, rows, text in (("tides", asked, CHOICE), ("sums", ROWS[:3], WRITTEN)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(text.format(folder=folder.as_posix()), encoding="utf-8")
    return folder


def by_its_command(model: Path, tasks: Path, out: Path, where: Path) -> dict[str, Any]:
    """Return the results of lm_eval's own command line."""
    words = ["run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", "tides,sums"]
    words += ["--include_path", str(tasks), "--device", "cpu", "--output_path", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(where)}
    subprocess.run([sys.executable, "-m", "lm_eval", *words], check=True, env=environment, capture_output=True)
    (found,) = out.rglob("results*.json")
    return dict(json.loads(found.read_text(encoding="utf-8"))["results"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["nbtune/tiny", pytest.param(SMOLLM2, marks=WITH_SMOLLM2, id="SmolLM2-135M")])
@pytest.mark.filterwarnings("ignore")  # lm_eval's, and those of what it imports
def test_the_figures_are_those_of_its_own_command_on_the_merged_model(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="`pip install nbtune[lm-eval]` brings it")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = tasks_in(tmp_path / "tasks")
    given: dict[str, Any] = {"model": model, "data": ROWS, "steps": 12, "batch_size": 8, "device": "cpu"}
    run = nbtune.finetune(given, name="asked", runs_dir=tmp_path).wait()
    found = nbtune.lm_eval(run, ["tides", "sums"], include_path=tasks)
    from nbtune.task_scores import figures_of

    merged = run.export.merged(tmp_path / "merged", dtype="float32")
    wanted = figures_of(by_its_command(merged.path, tasks, tmp_path / "out", tmp_path / "cache"))
    assert {name: tuned for name, (_, tuned) in found.scores.items()} == pytest.approx(wanted, abs=1e-6)
    assert wanted.keys() == {"tides/acc", "tides/acc_norm", "sums/exact_match", "sums/bleu"}
    base, tuned = (event for event in run.events() if isinstance(event, events.Scores))
    assert (base.step, tuned.step) == (0, 12)
    assert run.scores["tides/acc"] == found.scores["tides/acc"]
    assert "tides/acc" in str(found)
    with pytest.raises(TrainError, match="lm_eval could not ask no-such"):
        nbtune.lm_eval(run, "no-such")


def test_what_cannot_be_asked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainError, match=r"no task is named|not installed"):
        nbtune.lm_eval("nobody", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrainError) as missing:
        nbtune.lm_eval("nobody", "tides")
    assert "nbtune[lm-eval]" in str(missing.value)
