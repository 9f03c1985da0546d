"""Trainers of transformers and TRL, unmodified, watched by one line: `nbtune.watch`."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune.errors import NbtuneError, SpecError, TrainError
from nbtune.events import Eval, Sample, State, Step
from nbtune.store.outcome import measure
from tests.support.every import every

pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL and what it imports
WORDS = ("salt", "tar", "rope", "sail", "keel", "mast", "oar", "tide")
CHATS = [
    {
        "prompt": [{"role": "user", "content": f"What is {word}?"}],
        "completion": [{"role": "assistant", "content": f"It is {word}, sailor."}],
    }
    for word in WORDS
]
PAIRS = [{"prompt": f"What is {word}?", "chosen": " It is that.", "rejected": " No idea."} for word in WORDS]
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "learning_rate": 1e-3,
}


def _rewarded(completions: list[str], **_: Any) -> list[float]:
    return [min(len(text), 20) / 20 for text in completions]


def make(kind: str, out: Path, *, adapter: bool = True, **more: Any) -> Any:
    """A trainer on nbtune/tiny."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    torch.manual_seed(0)
    path = nbtune.models.resolve("nbtune/tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    callbacks = more.pop("callbacks", [])
    arguments = {**ARGUMENTS, "output_dir": str(out), "max_steps": 3, **more}
    about: dict[str, Any] = {"model": model, "processing_class": tokenizer, "callbacks": callbacks}
    if kind == "plain":
        ids = [{"input_ids": tokenizer(f"{word} and {word}")["input_ids"]} for word in WORDS]
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        return Trainer(args=TrainingArguments(**arguments), train_dataset=ids, data_collator=collator, **about)
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    about |= {"peft_config": LoraConfig(r=4, target_modules="all-linear")} if adapter else {}
    rows = Dataset.from_list(PAIRS if kind == "dpo" else CHATS)
    if kind == "sft":
        return trl.SFTTrainer(args=trl.SFTConfig(**arguments), train_dataset=rows, eval_dataset=rows, **about)
    if kind == "dpo":
        return trl.DPOTrainer(args=trl.DPOConfig(**arguments), train_dataset=rows, eval_dataset=rows, **about)
    rows = Dataset.from_list([{"prompt": row["prompt"]} for row in PAIRS])
    arguments |= {"num_generations": 2, "max_completion_length": 6, "beta": 0.04}
    return trl.GRPOTrainer(args=trl.GRPOConfig(**arguments), train_dataset=rows, reward_funcs=_rewarded, **about)


def said(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def of(run: Any, kind: type[Any]) -> list[Any]:
    return [event for event in run.events() if isinstance(event, kind)]


@pytest.mark.parametrize("kind", ["plain", *(pytest.param(k, marks=pytest.mark.slow) for k in ("sft", "dpo", "grpo"))])
def test_an_unmodified_trainer_is_a_run_with_the_losses_that_it_has_without_nbtune(kind: str, tmp_path: Path) -> None:
    measures = {"eval_strategy": "steps", "eval_steps": 2} if kind in ("sft", "dpo") else {}
    alone = make(kind, tmp_path / "out", **measures)
    alone.train()
    trainer = make(kind, tmp_path / "out", **measures)
    run = nbtune.watch(trainer, "theirs", tmp_path / "runs", samples=["Who are you?"])
    assert run is not None
    assert (run.state, run.alive) == ("queued", True)
    trainer.train()
    assert said(trainer) == said(alone) == [step.loss for step in of(run, Step)]
    assert (run.state, run.step, run.total_steps, run.alive) == ("finished", 3, 3, False)
    own = nbtune.attach("theirs", tmp_path / "runs")
    assert own.id == run.id
    assert own.plan.parameters > 1e6
    assert {sample.step for sample in of(run, Sample)} >= {0, 3}
    if kind in ("sft", "dpo"):
        assert [event.step for event in of(run, Eval)] == [2, 3]
        assert every(math.isfinite(event.loss) for event in of(run, Eval))
    figures = set(of(run, Step)[-1].metrics)
    assert (
        figures
        >= {
            "plain": set(),
            "sft": {"token_accuracy", "entropy"},
            "dpo": {"accuracy", "margin", "reward_chosen", "reward_rejected"},
            "grpo": {"reward", "reward_std", "kl", "length", "reward:_rewarded"},
        }[kind]
    )
    assert run.spec.method in ({"dpo": ["dpo"], "grpo": ["grpo", "sft"]}.get(kind, ["sft"]))
    assert run.generate("Who are you?", max_new_tokens=4) is not None
    (made,) = run.export.gguf("q8_0", verify=False)
    assert made.bytes > 1e6


def test_what_a_trainer_fails_of_ends_the_run_and_an_interrupt_stops_it_with_its_model(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Raises(TrainerCallback):
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                raise self.error

    for error, state, says in (
        (ValueError("row 7 is odd"), "failed", "ValueError: row 7 is odd"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
    ):
        trainer = make("plain", tmp_path / "out", callbacks=[Raises(error)])
        run = nbtune.watch(trainer, state, tmp_path / "runs")
        assert run is not None
        with pytest.raises(type(error)):
            trainer.train()
        if state == "failed":
            with pytest.raises(TrainError, match="row 7 is odd"):
                run.wait()
        else:
            run.wait()
        assert (run.state, run.alive) == (state, False)
        assert says in of(run, State)[-1].detail
        assert (run.folder / "adapter").is_dir() == (state == "stopped")
        assert measure(run, lambda _: None).rows == 0


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_watching_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbtune.engine import trainer_callback

    trainer = make("plain", tmp_path / "out")
    run = nbtune.watch(trainer, "full", tmp_path / "runs")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer_callback._Session, "step", full)
        trainer.train()
    assert trainer.state.global_step == 3
    assert run.state == "failed"
    assert "its trainer goes on" in run.latest(State).detail
    with monkeypatch.context() as patch:  # and where it cannot even begin
        patch.setattr(trainer_callback, "EventWriter", full)
        trainer.train()
    assert trainer.state.global_step == 3
    with monkeypatch.context() as patch:  # nor a third time, whose folder cannot be made
        patch.setattr(trainer_callback.watched_by(trainer), "_make", full)
        trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.slow
def test_an_exception_that_somebody_swallows_ends_the_run_all_the_same(tmp_path: Path) -> None:
    trainer = make("plain", tmp_path / "out")
    run = nbtune.watch(trainer, "swallowed", tmp_path / "runs")
    assert run is not None
    trainer.data_collator = lambda rows: 1 / 0
    with contextlib.suppress(ZeroDivisionError):
        trainer.train()
    with pytest.raises(TrainError):
        run.wait()
    assert run.state == "failed"


@pytest.mark.slow
def test_a_second_training_is_a_second_run_and_one_from_a_checkpoint_goes_on(tmp_path: Path) -> None:
    trainer = make("plain", tmp_path / "out", save_strategy="steps", save_steps=2, max_steps=4)
    first = nbtune.watch(trainer, "twice", tmp_path / "runs")
    again = nbtune.watch(trainer, "other", tmp_path / "runs")
    assert first is not None
    assert again is not None
    assert first.folder == again.folder, "a trainer is watched once"
    trainer.train()
    trainer.train()
    assert [run.state for run in nbtune.runs(tmp_path / "runs")] == ["finished"] * 2
    second = nbtune.attach("twice", tmp_path / "runs")
    assert second.folder != first.folder
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert len(nbtune.runs(tmp_path / "runs")) == 2
    assert [step.step for step in of(second, Step)] == [1, 2, 3, 4, 3, 4]
    assert "from step 2" in [state.detail for state in of(second, State) if state.state == "running"][-1]
    assert (second.state, second.step) == ("finished", 4)


def test_wishes_reach_the_trainer_and_what_is_asked_is_answered_while_it_trains(tmp_path: Path) -> None:
    trainer = make("plain", tmp_path / "out", max_steps=10_000, logging_steps=1)
    run = nbtune.watch(trainer, "wished", tmp_path / "runs")
    assert run is not None
    seen, paused = threading.Event(), threading.Event()

    def hear(events: list[Any], _: int) -> None:
        if any(isinstance(event, Step) for event in events):
            seen.set()
        if any(isinstance(event, State) and event.state == "paused" for event in events):
            paused.set()

    training = threading.Thread(target=trainer.train)
    end = run.subscribe(hear)
    training.start()
    assert seen.wait(240)
    answer = run.generate("Who are you?", max_new_tokens=3)
    run.pause()
    assert paused.wait(240)
    assert run.generate("Who are you?", max_new_tokens=3) is not None
    run.stop(wait=True)
    training.join()
    end()
    assert isinstance(answer, str)
    assert run.state == "stopped"
    assert 0 < run.step < 10_000
    assert (run.folder / "adapter" / "model.safetensors").is_file()
    for refused in (run.resume, run.go_on, lambda: run.set_learning_rate(1e-4)):
        with pytest.raises(TrainError, match=r"transformers's Trainer"):
            refused()
    with pytest.raises(TrainError, match="nbtune cannot train it"):
        nbtune.repeat(run.folder)


def test_other_processes_do_nothing_and_what_is_no_trainer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make("plain", tmp_path / "out")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(type(trainer.args), "process_index", property(lambda self: 1))
        assert nbtune.watch(trainer, "second", tmp_path / "runs") is None
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SpecError, match="no trainer"):
        nbtune.watch(trainer.model)


def test_a_trainer_that_never_trains_leaves_no_folder(tmp_path: Path) -> None:
    trainer = make("plain", tmp_path / "out")
    nbtune.watch(trainer, "never", tmp_path / "runs")
    assert len(nbtune.runs(tmp_path / "runs")) == 1
    del trainer
    gc.collect()
    assert nbtune.runs(tmp_path / "runs") == []


def test_the_folder_says_whose_it_is_and_no_secret(tmp_path: Path) -> None:
    trainer = make("sft", tmp_path / "out", hub_token="hf_" + "x" * 34, eval_strategy="steps", eval_steps=3)
    run = nbtune.watch(trainer, "whose", tmp_path / "runs")
    assert run is not None
    trainer.train()
    body = json.loads((run.folder / "trainer.json").read_text())
    assert (body["trainer"], body["library"]) == ("SFTTrainer", "trl")
    assert body["arguments"]["max_steps"] == 3
    text = "".join(path.read_text(errors="replace") for path in run.folder.rglob("*.json*"))
    assert "hf_x" not in text
    assert str(tmp_path) not in text
    assert "TRL's SFTTrainer" in of(run, State)[-1].detail
    assert (run.spec.adapter.type, run.spec.adapter.r, run.spec.steps) == ("lora", 4, 3)
    for made in (run.export.adapter(), run.export.merged()):
        assert made.bytes > 0
    assert "nbtune/tiny" in run.model_card("me/mine")
    assert b"PNG" in nbtune.widgets.report(run).png()[:8]
    assert measure(run, lambda _: None).rows is None, "held out there, and not here: so nobody says that none were"
    (run.folder / "trainer.json").write_text(json.dumps({"trainer": ["\x1b[31m"], "library": 3}))
    with pytest.raises(NbtuneError):
        run.resume()
