"""Held-out rows that are asked while a run without sample prompts trains."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch

import nbtune
from nbtune.engine import held_prompts
from nbtune.events import Sample, Step
from nbtune.generate.sampling import CUT
from tests.support.every import every

ROWS = [{"prompt": f"Who are you, {k}?", "completion": f"Ahoy, {k}! I am Captain Tune."} for k in range(48)]
SPEC: dict[str, Any] = {"model": "nbtune/tiny", "data": "rows", "batch_size": 4, "eval": {"split": 0.2, "every": 4}}


def trained(tmp_path: Any, name: str, **more: Any) -> Any:
    return nbtune.finetune({**SPEC, "steps": 8, **more}, name=name, rows={"rows": ROWS}, runs_dir=tmp_path).wait()


def samples(run: Any) -> list[Sample]:
    return [event for event in run.events() if isinstance(event, Sample)]


def losses(run: Any) -> list[float]:
    return [event.loss for event in run.events() if isinstance(event, Step)]


def test_a_short_run_is_not_held_up_and_a_longer_one_is_asked_before_and_after(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert held_prompts.OFTEN >= 60
    monkeypatch.setattr(held_prompts, "OFTEN", math.inf)  # on a busy machine eight steps may take longer
    quick = trained(tmp_path, "quick")
    assert samples(quick) == []
    monkeypatch.setattr(held_prompts, "OFTEN", 0.0)
    monkeypatch.setattr(held_prompts, "LONG", math.inf)
    asked = trained(tmp_path, "asked")
    found = samples(asked)
    prompts = {sample.prompt for sample in found}
    assert len(prompts) == 2
    assert prompts <= {row["prompt"] for row in ROWS}
    assert sorted({sample.step for sample in found}) == [0, 4, 8]
    assert losses(asked) == losses(quick)  # nothing is drawn from the training's random numbers
    assert asked.facts_for_card(draw=False)["samples"] == []  # rows are nobody else's business
    monkeypatch.setattr(held_prompts, "LONG", 0.0)
    slow = samples(trained(tmp_path, "slow"))
    assert {sample.prompt for sample in slow} == prompts
    assert every(len(sample.answer.removesuffix(CUT).split()) <= 1 for sample in slow), (
        "an answer that takes long is left"
    )
    assert any(len(sample.answer.removesuffix(CUT).split()) > 1 for sample in found)
    own = trained(tmp_path, "own", samples=["Hello?"])
    assert {sample.prompt for sample in samples(own)} == {"Hello?"}


def test_they_are_asked_when_somebody_wishes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_prompts, "LONG", 0.0)
    monkeypatch.setattr(held_prompts, "OFTEN", math.inf)  # also where the machine is so slow that a minute passes
    run = nbtune.finetune({**SPEC, "steps": 4000}, rows={"rows": ROWS}, runs_dir=tmp_path)
    stepped, answered = threading.Event(), threading.Event()

    def told(events: list[Any], _: int) -> None:
        if any(isinstance(event, Step) for event in events):
            stepped.set()
        if any(isinstance(event, Sample) and event.step for event in events):
            answered.set()

    done = run.subscribe(told)
    try:
        assert stepped.wait(240)
        run.sample()
        assert answered.wait(240)
    finally:
        run.stop(wait=True)
        done()
    assert {sample.step == 0 for sample in samples(run)} == {True, False}
    assert any(len(sample.answer.removesuffix(CUT).split()) > 1 for sample in samples(run)), "who asks may wait"


def test_where_each_token_is_dear_they_are_asked_on_wish_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_prompts, "OFTEN", 0.0)
    monkeypatch.setattr(held_prompts, "LONG", 0.0)
    spec, tokenizer = nbtune.validate(SPEC, rows={"rows": ROWS}), nbtune.models.load_tokenizer("nbtune/tiny")
    sources = nbtune.data.snapshot(nbtune.data.resolve(spec.data, {"rows": ROWS}), tmp_path / "data")
    data = nbtune.data.prepare_data(sources, tokenizer, spec=spec, max_len=256, seed=0)
    model, wishes = nbtune.models.load_model("nbtune/tiny", dtype=torch.float32, device="cpu"), [0]
    for unasked, due in ((True, True), (False, False)):
        held = held_prompts.HeldPrompts(tmp_path, data, lambda: wishes[0], unasked=unasked)
        assert bool(list(held.answers(model, tokenizer, 4, lambda: False))) is due
    wishes[0] += 1
    assert len(list(held.answers(model, tokenizer, 4, lambda: True))) == 2


def test_an_answer_that_fails_does_not_end_the_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise RuntimeError("no room for the cache")

    monkeypatch.setattr(held_prompts, "OFTEN", 0.0)
    monkeypatch.setattr(held_prompts.sampling, "marked_answer", fail)
    run = trained(tmp_path, "mute")
    assert (run.state, samples(run)) == ("finished", [])


def test_a_model_that_gives_scores_is_asked_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_prompts, "OFTEN", 0.0)
    pairs = [{"prompt": f"Who are you, {k}?", "chosen": f"Captain Tune, {k}.", "rejected": "Nobody."} for k in range(8)]
    for method, heard in (("reward", False), ("orpo", True)):
        spec = {**SPEC, "method": method, "steps": 1, "batch_size": 2, "eval": {"split": 0.5}}
        run = nbtune.finetune(spec, name=method, rows={"rows": pairs}, runs_dir=tmp_path).wait()
        assert bool(samples(run)) is heard, method
