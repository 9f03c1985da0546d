"""Whether answers stop where trained answers end, tried with a toy and with a model that is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nbtune import models
from nbtune.generate.sampling import answer
from nbtune.generate.stops import stops_where_answers_end
from nbtune.spec import from_mapping

SPEC = from_mapping({"data": "rows", "model": "nbtune/tiny"})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.load_tokenizer("nbtune/tiny")


def test_the_end_of_trained_answers_stops_and_is_named(tokenizer: Any) -> None:
    drawn = torch.get_rng_state()
    claim = stops_where_answers_end(tokenizer, SPEC)
    assert claim.holds
    assert claim.words == f"at {tokenizer.eos_token}, which ends trained answers"
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_model_that_was_asked_is_as_it_was(tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(models.resolve("nbtune/tiny"), dtype=torch.float32).train()
    before = answer(model, tokenizer, "Who are you?", max_new_tokens=8)
    assert stops_where_answers_end(tokenizer, SPEC, model).holds
    assert model.training
    assert answer(model, tokenizer, "Who are you?", max_new_tokens=8) == before != ""


def test_of_a_tokenizer_that_cannot_be_asked_nothing_is_claimed(tokenizer: Any) -> None:
    class Broken(type(tokenizer)):  # type: ignore[misc]
        def decode(self, *args: Any, **named: Any) -> str:
            raise RuntimeError("no words\nat all")

    broken = models.load_tokenizer("nbtune/tiny")
    broken.__class__ = Broken
    claim = stops_where_answers_end(broken, SPEC)
    assert claim.holds is None
    assert "RuntimeError: no words at all" in claim.words
