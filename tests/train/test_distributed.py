"""The same spec on two processes, through torchrun and the engine's own door, is the run of one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import nbtune
from nbtune.engine.engine import execute
from tests.support.every import every

ROWS = [{"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i}, " + "indeed " * (i % 5)} for i in range(24)]


def folder_of(runs: Path, rows: list[dict[str, Any]] = ROWS, **more: Any) -> Path:
    """A run's folder before anything was trained: made by a run of one step, and emptied."""
    spec = {
        "model": "nbtune/tiny", "data": "rows", "steps": 1, "micro_batch_size": 2, "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3, "eval": {"split": 0.1, "every": 3}, "max_grad_norm": 1.0, **more,
    }  # fmt: skip
    folder = nbtune.finetune(spec, name="ranks", rows={"rows": rows}, runs_dir=runs).wait().folder
    text = (folder / "spec.yaml").read_text()
    assert "\nsteps: 1\n" in text
    (folder / "spec.yaml").write_text(text.replace("\nsteps: 1\n", "\nsteps: 6\n"))
    for name in ("events.jsonl", "plan.json"):
        (folder / name).unlink()
    for part in ("checkpoints", "adapter"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "checkpoints").mkdir()
    return folder


def said(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["type"] == kind]


def torchrun(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "nbtune.engine", str(folder)], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path: Path) -> None:
    one = folder_of(tmp_path)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    assert execute(one) == "finished"
    ended = torchrun(two)
    assert ended.returncode == 0, ended.stderr[-2000:]
    alone, together = said(one, "step"), said(two, "step")
    assert [s["step"] for s in together] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "grad_norm"):
        assert [s[key] for s in together] == pytest.approx([s[key] for s in alone], rel=2e-6 if key == "loss" else 1e-4)
    for key in ("tokens", "trained_tokens", "learning_rate"):
        assert [s[key] for s in together] == [s[key] for s in alone]
    assert [e["loss"] for e in said(two, "eval")] == pytest.approx([e["loss"] for e in said(one, "eval")], rel=1e-5)
    assert said(two, "state")[-1]["state"] == "finished"
    names = "adapter/adapter_model.safetensors"
    trained = load_file(two / names)
    assert every((value - trained[key]).abs().max() < 1e-5 for key, value in load_file(one / names).items())


@pytest.mark.slow
def test_a_step_that_has_fewer_micro_batches_than_processes_is_shared_row_by_row(tmp_path: Path) -> None:
    one = folder_of(tmp_path, micro_batch_size=3, gradient_accumulation_steps=1)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    assert execute(one) == "finished"
    ended = torchrun(two)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert [s["loss"] for s in said(two, "step")] == pytest.approx([s["loss"] for s in said(one, "step")], rel=2e-6)


@pytest.mark.slow
def test_a_process_without_a_row_scales_as_the_others(tmp_path: Path) -> None:
    """fp16's scale is made by the first loss, of which a process without rows had none."""
    one = folder_of(tmp_path, micro_batch_size=1, gradient_accumulation_steps=1, dtype="fp16")
    two = tmp_path / "two"
    shutil.copytree(one, two)
    assert execute(one) == "finished"
    ended = torchrun(two)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert [s["loss"] for s in said(two, "step")] == pytest.approx([s["loss"] for s in said(one, "step")], rel=1e-3)


@pytest.mark.slow
def test_kto_compares_the_rows_of_all_processes(tmp_path: Path) -> None:
    """Of a step and of an evaluation; the figures that it tells are theirs, too."""
    judged = [{**row, "label": i % 3 > 0} for i, row in enumerate(ROWS)]
    one = folder_of(tmp_path, judged, method="kto", beta=0.5, micro_batch_size=3, gradient_accumulation_steps=1)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    assert execute(one) == "finished"
    ended = torchrun(two)
    assert ended.returncode == 0, ended.stderr[-2000:]
    for kind in ("step", "eval"):
        alone, together = said(one, kind), said(two, kind)
        assert [s["loss"] for s in together] == pytest.approx([s["loss"] for s in alone], rel=2e-5)
        for ours, theirs in zip(together, alone, strict=True):
            assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-4, abs=1e-4)
