"""Numbers that are lost end a run as failed, wherever they are lost; what was good stays, and nothing else goes out."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import nbtune
from nbtune import events
from nbtune.errors import ExportError, NbtuneError, TrainError
from tests.support.every import every

LOST = {"learning_rate": 1e30, "max_grad_norm": 0, "lr_scheduler_type": "constant", "warmup_ratio": 0}
PAIRS = [{"prompt": f"What is {n}?", "chosen": "A number, sailor.", "rejected": "I do not know."} for n in range(12)]
JUDGED = [
    {"prompt": p["prompt"], "completion": p[k], "label": k == "chosen"} for p in PAIRS for k in ("chosen", "rejected")
]


def failed(run):
    """Why it failed, after it has."""
    with pytest.raises(TrainError, match="is no number any more") as caught:
        run.wait(240)
    assert run.state == "failed"
    last = run.events()[-1]
    assert isinstance(last, events.State)
    assert (last.state, last.detail) == ("failed", str(caught.value))
    assert "learning_rate" in caught.value.fix
    assert "fp32" in caught.value.fix
    return caught.value


def nothing_is_published(run):
    assert not (run.folder / "adapter").exists()
    assert not run.saved_steps
    with pytest.raises(NbtuneError, match="nothing to export"):
        run.export.adapter()


@pytest.mark.parametrize("adapter", ["lora", "dora", "full"])
def test_a_last_step_that_loses_them_is_a_failure(start, adapter):
    run = start(steps=1, adapter={"type": adapter}, **LOST)
    failed(run)
    nothing_is_published(run)


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo", "orpo", "kto"])
def test_whatever_it_learns_by(start, method):
    rows = JUDGED if method == "kto" else PAIRS
    run = start(steps=1, method=method, rows=rows, **LOST)
    failed(run)
    nothing_is_published(run)


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (9, 1)])
def test_so_is_an_evaluation_that_finds_none(start, steps, every):
    run = start(steps=steps, eval={"split": 0.25, "every": every}, **LOST)
    assert "held-out rows" in failed(run).cause
    held = [event for event in run.events() if isinstance(event, events.Eval)]
    assert len(held) == 1
    assert not math.isfinite(held[0].loss)
    nothing_is_published(run)


def test_the_last_good_checkpoint_stays_and_can_be_used(start, until):
    run = start(steps=5_000, checkpoint={"every": 1, "keep": 2}, lr_scheduler_type="constant", max_grad_norm=0)
    until(run, lambda event: isinstance(event, events.Checkpoint) and event.step >= 2)
    run.set_learning_rate(1e30)
    failed(run)
    losses = {event.step: event.loss for event in run.events() if isinstance(event, events.Step)}
    kept = run.saved_steps
    assert kept
    assert max(kept) < max(losses) + 1
    for file in [*(run.folder / "checkpoints").glob("step-*/*.safetensors"), *(run.folder / "adapter").glob("*.safe*")]:
        assert every(torch.isfinite(tensor).all() for tensor in load_file(file).values()), file
    again = nbtune.attach(run.folder)
    measured, step = again.row_losses([([5, 6, 7, 8], [False, True, True, True])])
    assert step == max(kept)
    assert math.isfinite(measured[0])
    assert again.export.merged().path.is_dir()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_exports_refuse_such_weights_by_name(start, value):
    run = start(steps=2).wait()
    file = run.folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    short = re.escape(name.removeprefix("base_model.model.").rpartition(".lora_B")[0])
    for make in (run.export.adapter, run.export.adapter_gguf, run.export.merged, run.export.gguf, run.export.ollama):
        with pytest.raises(ExportError, match=f"{short}.* holds NaN or infinity"):
            make()
    assert not list((run.folder / "exports").rglob("*.safetensors"))
    assert not list((run.folder / "exports").rglob("*.gguf"))


def test_a_step_that_a_loss_scale_skips_is_no_failure(start):
    """fp16's gradients overflow while the scale is too high: the weights are as they were, after the last step, too."""
    run = start(steps=2, rows=PAIRS, method="dpo", beta=1e4, dtype="fp16").wait()
    assert run.state == "finished"
    norms = [event.grad_norm for event in run.events() if isinstance(event, events.Step)]
    assert not any(map(math.isfinite, norms))
    assert run.export.merged().path.is_dir()


def test_the_command_line_ends_with_1(tmp_path, capfd):
    from nbtune.cli import main

    rows = "".join(json.dumps({"prompt": p["prompt"], "completion": p["chosen"]}) + "\n" for p in PAIRS)
    (tmp_path / "rows.jsonl").write_text(rows)
    spec = {"model": "nbtune/tiny", "data": str(tmp_path / "rows.jsonl"), "steps": 1, "eval": {"split": 0}, **LOST}
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    assert main(["train", str(tmp_path / "spec.yaml"), "--runs", str(tmp_path / "runs")]) == 1
    assert "is no number any more (step 1)" in capfd.readouterr().err


@pytest.mark.slow
def test_several_processes_end_so_together(start):
    run = start(steps=1, gpus=2, device="cpu", **LOST)
    failed(run)
    nothing_is_published(run)
    held = start("held", steps=1, gpus=2, device="cpu", eval={"split": 0.25}, **LOST)
    assert "held-out rows" in failed(held).cause


def test_json_of_such_a_run_holds_no_nan(start):
    run = start(steps=1, **LOST)
    failed(run)
    for line in (run.folder / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(word))
