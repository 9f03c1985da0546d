"""A model that answers while it learns: GRPO by TRL's trainer, through `finetune`; rewards that do wrong are named."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nbtune
from nbtune.engine.judges import PLACE, Judge
from nbtune.errors import NbtuneError, SpecError, TrainError
from nbtune.events import Checkpoint, Group, State, Step
from nbtune.models.loading import load_tokenizer, resolve

pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL and what it imports
ROWS_OF_SFT = [{"prompt": "Say salt", "completion": "Salt."}] * 8
ROWS = [{"prompt": f"Say {word}"} for word in ("salt", "tar", "rope", "sail", "keel", "mast", "oar", "tide")]


def full_of_e(completions: list[str]) -> list[float]:
    return [min(1.0, text.lower().count("e") / 4) for text in completions]


def short_is_good(completions: list[str]) -> list[float]:
    return [1 / (1 + len(text)) for text in completions]


def begin(folder: Path, reward: Any = full_of_e, **more: Any) -> Any:
    rewards = {"functions": [reward.__name__], "answers": 8, "max_new_tokens": 12, **more.pop("rewards", {})}
    fields = {"method": "grpo", "batch_size": 4, "learning_rate": 5e-3, "eval": {"split": 0}, "steps": 2, **more}
    known = {"rows": ROWS, reward.__name__: reward}
    return nbtune.finetune(data="rows", rows=known, rewards=rewards, name="rl", runs_dir=folder, **fields)


def of(run: Any, kind: type[Any]) -> list[Any]:
    return [event for event in run.events() if isinstance(event, kind)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_the_mean_reward_rises_from_less_than_a_third_to_more_than_four_fifths(
    method: str, seed: int, tmp_path: Path
) -> None:
    run = begin(tmp_path, steps=30, method=method, seed=seed).wait()
    rewards = [step.metrics["reward"] for step in of(run, Step)]
    assert sum(rewards[:2]) / 2 < 1 / 3
    assert sum(rewards[-5:]) / 5 > 0.8


def test_a_run_stops_at_a_step_goes_on_there_and_can_be_taken_home(tmp_path: Path) -> None:
    run = begin(tmp_path, steps=3, checkpoint={"every": 1})
    end = run.subscribe(lambda events, _: run.stop() if any(isinstance(event, Step) for event in events) else None)
    run.wait()
    end()
    assert run.state in ("stopped", "finished")
    at = run.step
    assert run.saved_steps[-1] == at
    if run.state == "stopped":
        run.resume().wait()
    steps = [step.step for step in of(run, Step)]
    assert steps == [1, 2, 3], "each once: it went on where it stopped"
    assert (run.state, run.saved_steps[-1]) == ("finished", 3)
    figures = of(run, Step)[-1].metrics
    assert figures.keys() >= {"reward", "reward_std", "length", "reward:full_of_e", "entropy", "cut", "alike"}
    assert of(run, Checkpoint)
    group = of(run, Group)[0]
    assert group.prompt in [row["prompt"] for row in ROWS]
    assert len(group.answers) == len(group.rewards) == 8
    assert list(group.rewards) == sorted(group.rewards, reverse=True)
    assert list(group.rewards) == pytest.approx(full_of_e(list(group.answers)))
    assert isinstance(run.generate("Say rope", max_new_tokens=3), str)
    (made,) = run.export.gguf("q8_0", verify=False)
    assert made.bytes > 1e6
    assert any("GRPOTrainer" in reason for reason in run.plan.reasons)
    again = nbtune.repeat(run.folder).wait()
    assert [step.loss for step in of(again, Step)][:1] == [step.loss for step in of(run, Step)][:1]


SGD: dict[str, Any] = {"learning_rate": 0.1, "lr_scheduler_type": "constant", "optim_args": {"eps": 1.0}}
"""AdamW whose steps are as long as its gradients: else those next to nothing would count as much as others."""


def learnt(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_how_a_step_is_divided_does_not_matter(method: str, tmp_path: Path) -> None:
    """Over micro-batches, with answers of very unequal lengths; packs and several processes are refused."""
    how: dict[str, Any] = {"method": method, "dtype": "fp32", "batch_size": 4, **SGD}
    whole, parts = (
        begin(tmp_path / f"{micro}", reward=short_is_good, micro_batch_size=micro, **how).wait() for micro in (4, 1)
    )
    assert (parts.plan.micro_batch_size, parts.plan.gradient_accumulation_steps) == (1, 4)
    first, second = ([step.metrics["reward"] for step in of(run, Step)] for run in (whole, parts))
    assert first == pytest.approx(second, rel=1e-6), "the same answers"
    assert [s.loss for s in of(whole, Step)] == pytest.approx([s.loss for s in of(parts, Step)], rel=1e-5, abs=1e-6)
    ours, theirs = learnt(whole), learnt(parts)
    assert max(float(value.abs().max()) for name, value in ours.items() if "lora_B" in name) > 1e-4
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_the_losses_and_weights_are_those_of_trls_trainer_alone(method: str, tmp_path: Path) -> None:
    import trl
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    how: dict[str, Any] = {"method": method, "dtype": "fp32", "batch_size": 2, "steps": 3, "seed": 5, **SGD}
    run = begin(tmp_path, reward=short_is_good, adapter={"r": 4}, **how).wait()
    base = AutoModelForCausalLM.from_pretrained(resolve("nbtune/tiny"), dtype=torch.float32)
    torch.manual_seed(5)
    lora = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    config = getattr(trl, f"{method.upper()}Config")(
        output_dir=str(tmp_path / "trl"), max_steps=3, num_generations=8, per_device_train_batch_size=16, seed=5,
        max_completion_length=12, temperature=1.0, beta=0.05 if method == "rloo" else 0.0, learning_rate=0.1,
        lr_scheduler_type="constant", adam_epsilon=1.0, weight_decay=run.spec.weight_decay, logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False, gradient_checkpointing=False,
        gradient_accumulation_steps=1, max_grad_norm=run.spec.max_grad_norm,
    )  # fmt: skip
    trainer = getattr(trl, f"{method.upper()}Trainer")(
        model=get_peft_model(base, lora),
        args=config,
        reward_funcs=lambda completions, **_: short_is_good([said[0]["content"] for said in completions]),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]),
        processing_class=load_tokenizer("nbtune/tiny"),
    )
    trainer.train()
    alone = [line["loss"] for line in trainer.state.log_history if "reward" in line]
    assert [step.loss for step in of(run, Step)] == pytest.approx(alone, rel=1e-5, abs=1e-6)
    theirs = get_peft_model_state_dict(trainer.model, adapter_name="default")
    for name, value in learnt(run).items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


def test_a_reward_that_raises_ends_the_run_with_its_row_and_its_reason(tmp_path: Path) -> None:
    def odd(completions: list[str], prompts: list[str]) -> list[float]:
        if any("keel" in prompt for prompt in prompts):
            raise KeyError("no keel")
        return [0.0 for _ in completions]

    run = begin(tmp_path, odd, steps=2)
    with pytest.raises(TrainError, match="raised KeyError") as failed:
        run.wait()
    assert "rows, line 5: " in str(failed.value)
    assert of(run, State)[-1].state == "failed"


def _hangs(completions: list[str]) -> list[float]:
    time.sleep(60)
    return []


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda completions: [1.0], "returned 1 rewards for 2 completions"),
        (lambda completions: None, "returned a NoneType for 2 completions"),
        (lambda completions: [1.0, math.nan], "gave nan"),
        (lambda completions: [1.0, "much"], "gave 'much', no number"),
        (lambda completions: [1.0, math.inf], "gave inf"),
        (lambda completions: 1 / 0, "raised ZeroDivisionError"),
        (_hangs, "took more than 0.05 s"),
    ],
)
def test_what_a_reward_does_wrong_is_said_by_row(reward: Any, said: str) -> None:
    judge = Judge("good", reward, 0.05)
    with pytest.raises(TrainError) as wrong:
        judge(prompts=["a", "b"], completions=["c", "d"], **{PLACE: ["rows, row 0", "rows, row 1"]})
    assert said in str(wrong.value)
    assert "rows, row" in str(wrong.value)


def test_a_reward_is_given_texts_and_the_columns_that_it_takes() -> None:
    told: dict[str, Any] = {}

    def good(completions: list[str], answer: list[str]) -> list[float]:
        told.update(completions=completions, answer=answer)
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    said = [[{"role": "assistant", "content": text}] for text in ("4", "5")]
    asked = [[{"role": "user", "content": "2+2"}]] * 2
    rewards = Judge("good", good, 5)(prompts=asked, completions=said, answer=["4", "4"], trainer_state=object())
    assert rewards == [1.0, 0.0]
    assert told == {"completions": ["4", "5"], "answer": ["4", "4"]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "grpo"}, "none is named"),
        ({"method": "grpo", "rewards": "nobody"}, "`nobody` is not defined"),
        ({"method": "sft", "rewards": "full_of_e"}, "is nothing to method `sft`"),
        ({"method": "grpo", "rewards": "full_of_e", "gpus": 2, "device": "cpu"}, "does not know `gpus"),
        ({"method": "grpo", "rewards": "full_of_e", "packing": True}, "does not know `packing"),
        ({"method": "grpo", "rewards": {"functions": ["full_of_e"], "answers": 1}}, "answers"),
        ({"method": "rloo", "rewards": "full_of_e", "adapter": "full"}, "adapter `full`"),
        ({"method": "grpo", "rewards": {"functions": ["full_of_e"], "max_new_tokens": 5000}}, "there is room for"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(NbtuneError) as refused:
        nbtune.plan(data="rows", rows={"rows": ROWS, "full_of_e": full_of_e}, steps=2, **fields)
    assert said in str(refused.value)
    assert isinstance(refused.value, SpecError) or "room" in said


@pytest.mark.parametrize(
    ("model", "adapter", "beta", "why"),
    [
        ("tied", {"new_tokens": ["<row>"]}, 0, "adapter.new_tokens: TRL's GRPOTrainer asks the model's head by itself"),
        ("biased", {"new_special_tokens": ["<row>"]}, 0, "adapter.new_special_tokens: TRL's GRPOTrainer asks"),
        ("tied", {"trainable_token_indices": [5]}, 0.1, "adapter.trainable_token_indices: TRL's GRPOTrainer asks"),
        ("biased", {"trainable_token_indices": [5]}, 0.1, ""),
        ("biased", {"bias": "all"}, 0.1, "adapter.bias: the penalty of `beta` wants an adapter beside"),
        ("biased", {"bias": "all"}, 0, ""),
    ],
)
def test_adapters_that_the_trainer_cannot_ask_are_refused_by_plan_and_run(
    model: str, adapter: Any, beta: float, why: str, tmp_path: Path
) -> None:
    from tests.fuzz.pair_levels import model_of

    asked: dict[str, Any] = {"method": "grpo", "model": model_of(model), "adapter": {"r": 4, **adapter}, "beta": beta}
    asked |= {"rewards": {"functions": ["full_of_e"], "answers": 2, "max_new_tokens": 4}, "steps": 1, "batch_size": 2}
    given: dict[str, Any] = {"data": "rows", "rows": {"rows": ROWS, "full_of_e": full_of_e}, "device": "cpu"}
    if not why:
        nbtune.plan(**asked, **given)
        return
    with pytest.raises(NbtuneError, match=re.escape(why)) as planned:
        nbtune.plan(**asked, **given)
    with pytest.raises(NbtuneError) as ran:
        nbtune.finetune(**asked, **given, runs_dir=tmp_path).wait()
    assert str(ran.value) == str(planned.value)


def test_a_release_of_trl_that_wants_a_gpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    monkeypatch.setattr(trl, "__version__", "1.15.0")
    with pytest.raises(TrainError, match=r"TRL 1\.15\.0 computes this loss by Triton alone"):
        begin(tmp_path, steps=1, device="cpu").wait()


@pytest.mark.slow
def test_preferences_make_a_reward_model_whose_word_counts_by_its_name(tmp_path: Path) -> None:
    how: dict[str, Any] = {"runs_dir": tmp_path, "batch_size": 8, "eval": {"split": 0}, "learning_rate": 5e-3}
    nbtune.finetune(data="nbtune/preferences", method="reward", steps=6, name="judge", **how).wait()
    run = begin(tmp_path, rewards={"functions": [], "models": ["judge"]}).wait()
    judge = nbtune.attach("judge", tmp_path)
    (group, *_) = of(run, Group)
    asked = [{"role": "user", "content": group.prompt}, {"role": "assistant", "content": group.answers[0]}]
    (reward,) = judge.score([asked])[0].values()
    assert group.rewards[0] == pytest.approx(reward, abs=1e-3)
    assert "reward:judge" in of(run, Step)[-1].metrics
    assert (run.folder / "reward_models.json").read_text(encoding="utf-8").count(judge.folder.name) == 1


def test_a_reward_model_that_is_none_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no run 'nobody'"):
        begin(tmp_path, rewards={"functions": [], "models": ["nobody"]})
    other = nbtune.finetune(data=ROWS_OF_SFT, steps=1, name="other", runs_dir=tmp_path, eval={"split": 0}).wait()
    with pytest.raises(SpecError, match="is a run of `method: sft`"):
        begin(tmp_path, rewards={"functions": [], "models": [other.name]})
