"""What a trainer says, as events: figures since the step before, the best of its evaluations, a wish heard once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerControl, TrainerState, TrainingArguments

from nbtune.engine.foreign_facts import arguments_of
from nbtune.engine.trainer_events import TrainerEvents
from nbtune.engine.trainer_prompts import TrainerPrompts
from nbtune.store.control import wish


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), report_to=[], resume_from_checkpoint="/home/ada/checkpoint-3", use_cpu=True
    )
    return Trainer(model=LlamaForCausalLM(config), args=arguments)


@pytest.fixture
def said() -> list[Any]:
    return []


@pytest.fixture
def session(trainer: Trainer, said: list[Any], tmp_path: Path) -> TrainerEvents:
    return TrainerEvents(tmp_path, trainer, said.append, TrainerPrompts((), None), TrainerState(max_steps=9), "theirs")


def state_of(step: int) -> TrainerState:
    return TrainerState(global_step=step, max_steps=9, num_input_tokens_seen=100 * step)


def test_seconds_and_tokens_are_those_since_the_step_before(session: TrainerEvents, said: list[Any]) -> None:
    session.step_began()
    session.step_ended()
    session.step(state_of(1), {"loss": 2.0})
    session.step(state_of(3), {"loss": 1.0})
    assert [event.tokens for event in said] == [100, 200]
    assert said[0].seconds > 0
    assert said[1].seconds == 0


def test_the_best_evaluation_is_the_best_of_all_before(session: TrainerEvents, said: list[Any]) -> None:
    for step, loss in enumerate((1.0, 2.0, 1.5, float("nan"), 0.5, 0.5)):
        session.evaluated(state_of(step), {"eval_loss": loss, "eval_runtime": 3.0})
    assert [event.best for event in said] == [True, False, False, False, True, False]
    assert {event.seconds for event in said} == {3.0}


def test_of_several_sets_the_mean_is_told_beside_each(session: TrainerEvents, said: list[Any]) -> None:
    for step in (1, 2):
        session.evaluated(state_of(step), {"eval_long_loss": 1.0 * step})
        session.evaluated(state_of(step), {"eval_short_loss": 3.0 * step})
    assert [event.loss for event in said] == [1.0, 2.0, 2.0, 4.0]
    assert said[-1].sources == {"long": 2.0, "short": 6.0}


def test_a_checkpoint_that_is_wished_for_is_made_once(session: TrainerEvents, tmp_path: Path) -> None:
    control = TrainerControl()
    session.between(state_of(1), control)
    assert not control.should_save
    wish(tmp_path, checkpoint=True)
    while not control.should_save:  # the disk is looked at now and then
        session.between(state_of(2), control)
    control.should_save = False
    session.between(state_of(2), control)
    assert not control.should_save


def test_arguments_are_kept_without_paths_of_this_machine(trainer: Trainer) -> None:
    kept = arguments_of(trainer)
    assert kept["use_cpu"] is True
    assert not [value for value in kept.values() if isinstance(value, str) and value.startswith("/")]
