"""A run of pairs: the prompt goes through the model once, and the reference is asked once a row; the losses stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import events
from nbtune.train import logprobs, shared_prompts
from tests.support.every import every

ROWS = [
    {"prompt": f"Say where ship number {n} lies this evening.", "chosen": f"In bay {n}.", "rejected": f"No. {n}?"}
    for n in range(8)
]


def losses(tmp_path: Path, **how: Any) -> tuple[Any, list[float]]:
    spec = {"model": "nbtune/tiny", "method": "dpo", "epochs": 2, "batch_size": 2, "dtype": "fp32", "device": "cpu"}
    spec |= {"learning_rate": 1e-3, "eval": {"split": 0.25, "every": 3}, "packing": False}
    run = nbtune.finetune({**spec, **how}, data=ROWS, runs_dir=tmp_path, name=f"pairs-{how.get('accelerate', True)}")
    run.wait()
    told = [e.loss for e in run.events() if isinstance(e, events.Step | events.Eval)]
    run.free()
    return run, told


def test_a_run_says_so_does_so_and_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[bool] = []
    asked: list[int] = []
    own, of_reference = shared_prompts.laid_out, logprobs.in_place_of
    monkeypatch.setattr(logprobs, "laid_out", lambda *a: laid_out.append((once := own(*a)) is not None) or once)
    monkeypatch.setattr(logprobs, "in_place_of", lambda *a: asked.append(1) or of_reference(*a))
    run, ours = losses(tmp_path)
    assert laid_out
    assert every(laid_out)
    assert len(asked) == 4  # three micro-batches and one of held-out rows, however often these come
    reasons = " ".join(run.plan.reasons)
    assert "goes through the model once" in reasons
    assert "asked once" in reasons
    laid_out.clear()
    stock, truth = losses(tmp_path, accelerate=False)
    assert not laid_out
    assert "through the model once" not in " ".join(stock.plan.reasons)
    assert ours == pytest.approx(truth, rel=1e-4, abs=1e-5)
