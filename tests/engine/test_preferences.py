"""Runs that learn from judgements: from a file of pairs, or of good and bad answers, to an adapter that prefers."""

from __future__ import annotations

import json
import math

import pytest

import nbtune
from nbtune import events
from nbtune.errors import DataError, SpecError

QUESTIONS = [f"What is {a} plus {b}?" for a in range(6) for b in range(4)]
PAIRS = [{"prompt": q, "chosen": "It is a sum, sailor.", "rejected": "I do not know."} for q in QUESTIONS]
JUDGED = [
    {"prompt": p["prompt"], "completion": p[k], "label": k == "chosen"} for p in PAIRS for k in p if k != "prompt"
]


@pytest.fixture
def learn(tmp_path):
    """A run on rows of a file."""

    def begin(rows, name="demo", steps=8, wait=True, **fields):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        spec = {"data": str(file), "steps": steps, "batch_size": 4, "learning_rate": 1e-3, **fields}
        run = nbtune.finetune({"eval": {"split": 0}, **spec}, name=name, runs_dir=tmp_path / "runs")
        return run.wait() if wait else run

    return begin


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo", "orpo"])
def test_pairs_are_learnt_in_either_shape(learn, method):
    run = learn(PAIRS, method=method, eval={"split": 0.25, "every": 4})
    assert run.state == "finished"
    losses = run.history["loss"]
    if method == "dpo":  # nothing is preferred at first: -log σ(0)
        assert losses.iloc[0] == pytest.approx(math.log(2), abs=1e-6)
    if method == "ipo":  # (0 - 1 / 2β)²
        assert losses.iloc[0] == pytest.approx(25.0, abs=1e-4)
    assert losses.iloc[-1] < losses.iloc[0]
    held = run.history["eval_loss"].dropna()
    assert held.iloc[-1] < losses.iloc[0]
    assert (run.plan.rows, run.plan.eval_rows) == (18, 6)
    again = learn(
        [{**p, "prompt": [{"role": "user", "content": p["prompt"]}]} for p in PAIRS], "again", 1, method=method
    )
    assert again.history["loss"].iloc[0] == pytest.approx(losses.iloc[0], rel=0.3)


def test_what_a_method_tells_besides_is_in_events_and_history(learn):
    fields = {"eval": {"split": 0.25, "every": 4}, "beta": 0.5, "micro_batch_size": 2}
    run = learn(PAIRS, method="dpo", **fields)
    table = run.history
    first, last = table.iloc[0], table.iloc[-1]
    assert (first["margin"], first["reward_chosen"], first["accuracy"]) == pytest.approx((0, 0, 0), abs=1e-6)
    assert last["accuracy"] == 1
    assert last["margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], abs=1e-5)
    assert table["eval_accuracy"].dropna().iloc[-1] == 1
    assert table["eval_margin"].dropna().iloc[-1] > 0.1
    assert run.latest(events.Step).metrics.keys() == {"accuracy", "margin", "reward_chosen", "reward_rejected"}
    assert run.latest(events.Eval).metrics["accuracy"] == 1
    assert "metrics" not in table
    one_kind = [row for row in JUDGED if row["label"]]
    told = learn(one_kind, "good", 2, method="kto", batch_size=2).latest(events.Step).metrics
    assert told.keys() == {"reward_good"}, "of bad answers nothing is told where there are none"
    assert learn([{"text": "Aye, sailor."}] * 4, "sft", 1).latest(events.Step).metrics == {}


def test_answers_that_are_good_or_bad(learn):
    run = learn(JUDGED, method="kto", steps=10, batch_size=7)  # 48 answers: an epoch ends with 6 of them
    assert run.history["loss"].iloc[0] == pytest.approx(0.5, abs=1e-6)
    assert run.history["loss"].iloc[-1] < 0.45


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_micro_batches_are_one_batch(learn, method):
    """Of held-out rows too: all that a loss compares is of the whole step, and there of all of them."""
    rows = JUDGED if method == "kto" else PAIRS
    rows = [
        {k: v[: 5 + 3 * i] if k in ("chosen", "completion") else v for k, v in r.items()} for i, r in enumerate(rows)
    ]
    fields = {"method": method, "batch_size": 8, "eval": {"split": 0.25, "every": 2}}
    whole = learn(rows, "whole", 4, micro_batch_size=8, **fields)
    parts = learn(rows, "parts", 4, micro_batch_size=1, **fields)
    assert (whole.plan.gradient_accumulation_steps, parts.plan.gradient_accumulation_steps) == (1, 8)
    assert parts.history["loss"].tolist() == pytest.approx(whole.history["loss"].tolist(), abs=2e-5)
    held = [run.history["eval_loss"].dropna().tolist() for run in (parts, whole)]
    assert held[0] == pytest.approx(held[1], abs=2e-5)
    assert len(held[0]) == 2


@pytest.mark.parametrize("sequence_len", [192, None])  # None: as long as the longest answer, of which a row has two
def test_packed_pairs_are_the_same_pairs(learn, sequence_len):
    run = learn(PAIRS, method="dpo", packing=True, sequence_len=sequence_len, batch_size=2, steps=2)
    (check,) = [event for event in run.events() if isinstance(event, events.Check)]
    assert check.passed, check.detail


def test_a_stopped_run_goes_on_where_it_was(learn, until):
    """Its end is so far away that none is too quick to be stopped."""
    fields = {"method": "dpo", "adapter": {"dropout": 0.1}, "learning_rate": 1e-4}
    fields |= {"lr_scheduler_type": "constant", "warmup_ratio": 0}
    run = learn(PAIRS, "part", 100_000, wait=False, **fields)
    until(run, lambda event: isinstance(event, events.Step) and event.step >= 3)
    run.stop(wait=True)
    assert run.state == "stopped"
    seen = run.step
    run.resume()
    until(run, lambda event: isinstance(event, events.Step) and event.step >= seen + 3)
    run.stop(wait=True)
    assert run.step > seen >= 3
    whole = learn(PAIRS, "whole", run.step, **fields)
    assert run.history["loss"].tolist() == whole.history["loss"].tolist()


def test_what_does_not_go_together_is_said(learn):
    with pytest.raises(SpecError, match="without its adapter"):
        learn(PAIRS, method="dpo", adapter="full")
    with pytest.raises(SpecError, match="beta"):
        learn(PAIRS, beta=0.2)
    with pytest.raises(SpecError, match="answers of a step"):
        learn(JUDGED, method="kto", batch_size=1)
    with pytest.raises(DataError, match="method: sft"):
        learn(PAIRS)
    with pytest.raises(DataError, match="wanted"):
        learn(JUDGED, method="dpo")
