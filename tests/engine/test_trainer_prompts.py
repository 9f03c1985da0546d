"""Rows of a watched trainer that nobody wished to be asked: only where that costs next to nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nbtune.engine.trainer_prompts import OFTEN, TrainerPrompts
from nbtune.models import build
from nbtune.spec import AdapterSpec

ROWS = [{"prompt": "Who sells clocks?"}, {"prompt": "Where is the lake?"}]
MONTH = 30 * 86400.0  # a share of which is enough on a busy machine, too


class Asked:
    """The embedded model, of which it is counted how often it reads, slowly."""

    def __init__(self) -> None:
        how: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 1}
        built = build("nbtune/tiny", adapter=AdapterSpec(), **how)
        self.model, self.tokenizer, self.reads = built.model, built.tokenizer, 0
        self._hook = self.model.get_input_embeddings().register_forward_pre_hook(self._slowly)

    def _slowly(self, *_: object) -> None:
        self.reads += 1
        time.sleep(0.01)

    def __call__(self, prompts: TrainerPrompts, *, wished: bool = False) -> list[str]:
        """Ask; return of what step each answer is."""
        self.reads = 0
        said = prompts.answers(self.model, self.tokenizer, 7, lambda: False, wished=wished)
        return [f"{sample.step}" for sample in said]


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    one = Asked()
    yield one
    one._hook.remove()


def after(seconds: float) -> TrainerPrompts:
    """The prompts of a training that began so long ago."""
    prompts = TrainerPrompts((), ROWS)
    prompts._began -= seconds
    prompts._asked_at -= seconds
    return prompts


def test_answers_that_would_cost_too_much_are_left_after_a_few_words(asked: Asked) -> None:
    prompts = after(OFTEN + 1)
    assert prompts.due()
    assert asked(prompts) == []
    assert 1 <= asked.reads <= 4, "of 4 answers with up to 64 words each"
    assert not prompts.due(), "nor are they tried again and again"


def test_they_are_asked_when_the_training_is_long_enough(asked: Asked) -> None:
    prompts = after(OFTEN + 1)
    asked(prompts)
    prompts._began -= MONTH
    prompts._asked_at -= MONTH
    assert prompts.due()
    assert asked(prompts) == ["0", "7", "0", "7"], "the base's beside them"
    assert not prompts.due(), "once a minute at most"


def test_a_long_training_tries_and_asks_at_once(asked: Asked) -> None:
    assert len(asked(after(MONTH))) >= 2


def test_what_somebody_wishes_is_asked_whatever_it_costs(asked: Asked) -> None:
    prompts = after(OFTEN + 1)
    assert len(asked(prompts, wished=True)) >= 2
    assert not prompts.due()


def test_a_chat_is_asked_up_to_its_last_answer() -> None:
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ahoy!"), ("user", "Who?"), ("assistant", "I.")]
    chat = [{"role": role, "content": text} for role, text in said]
    asked = TrainerPrompts((), [{"messages": chat}, {"conversations": chat[:2]}]).prompts
    assert asked == [chat[:4], chat[:2]]
