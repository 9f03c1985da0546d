"""Trained tokens that rows do not teach are told by the plan and by the run, and what they learn is what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nbtune
from nbtune import events
from nbtune.store import checkpoints
from tests.support.family_cases import SIZES
from tests.support.tiny_models import save_speaking

ROWS = [{"text": f"Say <salt> {number}"} for number in range(8)]


def warnings_of(run: Any) -> list[str]:
    return [event.message for event in run.wait().events() if isinstance(event, events.Warning)]


@pytest.mark.parametrize(("tied", "learnt"), [(True, "all that is learnt of it is not to"), (False, "nothing is lear")])
def test_what_is_said_of_a_token_that_stands_nowhere_is_what_it_learns(
    start: Any, tmp_path: Path, tied: bool, learnt: str
) -> None:
    base = str(save_speaking("llama", tmp_path / "base", **{**SIZES, "tie_word_embeddings": tied}))
    tokenizer = nbtune.models.load_tokenizer(base)
    (there, *_), absent = tokenizer("Say").input_ids, tokenizer.convert_tokens_to_ids("Q")
    adapter = {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [there, absent]}
    asked: dict[str, Any] = {"model": base, "adapter": adapter, "steps": 2, "dtype": "fp32", "learning_rate": 1e-2}
    said = f"1 of 2 trained tokens (`Q`) stands in no row: {learnt}"
    plan = nbtune.plan(**asked, device="cpu", data="rows", rows={"rows": ROWS})
    assert [reason for reason in plan.reasons if reason.startswith(said)]
    run = start(rows=ROWS, **asked)
    assert [message for message in warnings_of(run) if message.startswith(said)]

    trained = load_file(checkpoints.latest(run.folder) / "trainable.safetensors")
    (rows,) = [value for name, value in trained.items() if "token_adapter" in name]
    before = load_file(Path(base) / "model.safetensors")["model.embed_tokens.weight"]
    moved = [not torch.equal(row, before[number]) for row, number in zip(rows, (there, absent), strict=True)]
    assert moved == [True, tied]


def test_rows_that_hold_the_tokens_are_not_spoken_of(start: Any, tmp_path: Path) -> None:
    base = str(save_speaking("llama", tmp_path / "base", **SIZES))
    asked: dict[str, Any] = {"model": base, "adapter": {"r": 2, "new_tokens": ["<salt>"]}, "steps": 1}
    assert "no row" not in str(nbtune.plan(**asked, device="cpu", data="rows", rows={"rows": ROWS}))
    assert not [message for message in warnings_of(start(rows=ROWS, **asked)) if "trained token" in message]


def test_of_rows_that_still_arrive_it_is_said_when_all_are_there(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbtune.data.prepare.prepare.AT_ONCE", 40)
    rows = [{"text": f"Say {number}, and so on."} for number in range(100)]
    run = start(rows=rows, adapter={"r": 2, "new_tokens": ["<salt>"]}, steps=8)
    said = [message for message in warnings_of(run) if "the trained token (`<salt>`) stands in no row" in message]
    assert len(said) == 1
