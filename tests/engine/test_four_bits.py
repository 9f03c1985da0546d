"""A run on 4-bit weights: looking at the model changes nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("bitsandbytes")

FIELDS = {"adapter": "qlora", "steps": 5}


def test_evaluation_and_samples_change_no_loss(start):
    # bitsandbytes repacks weights that answer, on some processors, and rounds their scales
    plain = start("plain", **FIELDS).wait()
    watched = start("watched", samples=["What is 3 plus 3?"], checkpoint={"every": 1}, **FIELDS).wait()
    assert watched.history["loss"].tolist() == plain.history["loss"].tolist()


def test_a_run_with_evaluation_goes_on_exactly_from_a_checkpoint(start):
    fields = {**FIELDS, "eval": {"split": 0.2, "every": 1}, "checkpoint": {"every": 1, "keep": 9}}
    run = start("run", **fields).wait()
    losses = run.history["loss"].tolist()
    run.resume(step=3).wait()
    assert run.history["loss"].tolist() == losses
