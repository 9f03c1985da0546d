"""TRL's trainers beside `nbtune.finetune`: rows in, losses and the saved adapter out.

Both get the same rows, chat template and embedded model; decay, clipping, warm-up, accumulation and uneven rows are as
asked for. Nothing of nbtune's is rebuilt here: what decides a step stands in the spec alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nbtune
from nbtune.models.loading import load_tokenizer, resolve
from nbtune.train.stepper import seed_of

SEED, RATE, STEPS = 5, 1e-3, 5
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPEC: dict[str, Any] = {
    "model": "nbtune/tiny", "data": "rows", "chat_template": TEMPLATE, "order": "given", "device": "cpu",
    "steps": STEPS, "learning_rate": RATE, "lr_scheduler_type": "cosine", "warmup_ratio": 0.3, "weight_decay": 0.1,
    "max_grad_norm": 0.1, "seed": SEED, "eval": {"split": 0}, "dtype": "fp32",
}  # fmt: skip
ADAPTER = {"type": "lora", "r": 4, "alpha": 12}
COMMON: dict[str, Any] = {
    "max_steps": STEPS, "learning_rate": RATE, "lr_scheduler_type": "cosine", "warmup_steps": 0.3, "weight_decay": 0.1,
    "max_grad_norm": 0.1, "optim": "adamw_torch", "bf16": False, "use_cpu": True, "report_to": "none", "seed": SEED,
    "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
}  # fmt: skip
Row = dict[str, Any]
Trained = tuple[list[float], dict[str, torch.Tensor]]
"""Losses of the steps, and the weights that were trained."""


def rows(count: int) -> list[Row]:
    """Answers of one to many words."""
    words = ["Aye", "No, captain, by all the winds of the seven seas", "It is the old lantern"]
    return [
        {"prompt": f"Who is number {i}?", "completion": f"{words[i % 3]} {'and more ' * (i % 4)}{i}"}
        for i in range(count)
    ]


def pairs(count: int) -> list[Row]:
    return [
        {"prompt": r["prompt"], "chosen": r["completion"], "rejected": "I do not know" + " it" * (i % 5)}
        for i, r in enumerate(rows(count))
    ]


def judged(count: int) -> list[Row]:
    return [{**row, "label": i % 3 > 0} for i, row in enumerate(rows(count))]


def ours(tmp_path: Path, given: list[Row], dropout: float = 0.0, **fields: Any) -> Trained:
    """What nbtune makes of rows: the weights are those of the folder that is exported and pushed."""
    spec = {**SPEC, "adapter": {**ADAPTER, "dropout": dropout}, **fields}
    run = nbtune.finetune(spec, rows={"rows": given}, name="ours", runs_dir=tmp_path / "runs").wait()
    assert run.state == "finished", run.error
    (file,) = (run.folder / "adapter").glob("*.safetensors")
    return run.history["loss"].tolist(), load_file(file)


def theirs(
    tmp_path: Path,
    kind: str,
    given: list[Row],
    micro: int,
    accumulation: int,
    dropout: float = 0.0,
    full: bool = False,
    lora: dict[str, Any] | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    **more: Any,
) -> Trained:
    """What TRL makes of them; what a micro-step draws is decided as nbtune does, by step and micro-step."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM

    parts: list[float] = []

    class Watched(getattr(trl, f"{kind}Trainer")):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            torch.manual_seed(seed_of(SEED, *divmod(len(parts), accumulation)))
            parts.append(float(super().training_step(*args, **kwargs)))
            return torch.tensor(parts[-1])

    base = AutoModelForCausalLM.from_pretrained(resolve("nbtune/tiny"), dtype=torch.float32)
    torch.manual_seed(SEED)
    asked = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "bias": "none", **(lora or {})}
    model = base if full else get_peft_model(base, LoraConfig(lora_dropout=dropout, task_type="CAUSAL_LM", **asked))
    tokenizer = load_tokenizer("nbtune/tiny")
    tokenizer.chat_template = TEMPLATE
    options = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation, **COMMON, **more}
    config = getattr(trl, f"{kind}Config")(output_dir=str(tmp_path / "trl"), **options)
    said = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    chats = [{k: [{"role": said[k], "content": v}] if k in said else v for k, v in row.items()} for row in given]
    made = (None if optimizer is None else optimizer(model), None)
    data = Dataset.from_list(chats)
    trainer = Watched(model, args=config, train_dataset=data, processing_class=tokenizer, optimizers=made)
    trainer.train()
    losses = [sum(parts[i : i + accumulation]) for i in range(0, len(parts), accumulation)]
    trained = trainer.model.state_dict() if full else get_peft_model_state_dict(trainer.model, adapter_name="default")
    return losses, trained


def same(found: Trained, truth: Trained, rate: float = RATE, later: float = 1e-5) -> None:
    """Losses and weights; `later`: how far off losses may be when rounding errors have grown over three steps."""
    (losses, adapter), (expected, weights) = found, truth
    assert len(expected) == STEPS
    assert losses[:2] == pytest.approx(expected[:2], rel=1e-5)
    assert losses == pytest.approx(expected, rel=later)
    weights.pop("lm_head.weight", None)  # the embedding's
    assert adapter.keys() == weights.keys()
    off = torch.cat([(adapter[name] - value).abs().flatten() for name, value in weights.items()])
    assert float(off.mean()) < 1e-4 * rate, "what was not decayed would be off by a hundred times that"
    assert float(off.max()) < 0.1 * rate, "of an element whose gradient is next to nothing Adam divides rounding errors"


@pytest.mark.filterwarnings("ignore")  # trl's and transformers' own deprecations are not ours to mend
@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_sft(tmp_path: Path, dropout: float) -> None:
    """With dropout the layers are peft's own, and draw alike."""
    given = rows(STEPS * 6)
    found = ours(tmp_path, given, dropout, micro_batch_size=2, gradient_accumulation_steps=3, accelerate=dropout == 0)
    same(found, theirs(tmp_path, "SFT", given, 2, 3, dropout, completion_only_loss=True, pad_to_multiple_of=8))


@pytest.mark.filterwarnings("ignore")
def test_packed_sft(tmp_path: Path) -> None:
    """A step of all rows, in whichever packs: TRL's are side by side."""
    given = rows(10)
    found = ours(tmp_path, given, packing=True, sequence_len=96, micro_batch_size=2, gradient_accumulation_steps=6)
    same(found, theirs(tmp_path, "SFT", given, 2, 5, completion_only_loss=True))


@pytest.mark.filterwarnings("ignore")
def test_all_weights_but_norms_decay(tmp_path: Path) -> None:
    given = rows(STEPS * 4)
    found = ours(tmp_path, given, adapter={"type": "full"}, micro_batch_size=2, gradient_accumulation_steps=2)
    same(found, theirs(tmp_path, "SFT", given, 2, 2, full=True, completion_only_loss=True))


@pytest.mark.filterwarnings("ignore")
def test_dpo(tmp_path: Path) -> None:
    given = pairs(STEPS * 4)
    found = ours(tmp_path, given, method="dpo", beta=0.4, micro_batch_size=2, gradient_accumulation_steps=2)
    same(found, theirs(tmp_path, "DPO", given, 2, 2, beta=0.4), later=1e-4)  # a prompt once: sums in another order


FAMILY = ("hinge", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down", "bco_pair", "discopop")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "robust")) for k in FAMILY])
def test_dpos_family(tmp_path: Path, kind: str) -> None:
    """At a low rate: where a loss has a kink, or runs away, rounding errors grow."""
    given, smoothing = pairs(STEPS * 2), {"label_smoothing": 0.1} if kind in ("robust", "exo_pair") else {}
    more: dict[str, Any] = {"micro_batch_size": 2, "gradient_accumulation_steps": 1}
    rate = {"learning_rate": 2e-4}
    found = ours(tmp_path, given, method="dpo", beta=0.4, loss={"type": kind, **smoothing}, **more, **rate)
    same(found, theirs(tmp_path, "DPO", given, 2, 1, beta=0.4, loss_type=kind, **smoothing, **rate), 2e-4, later=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["length_normalized", "rpo_alpha"])
def test_dpo_with_lengths_and_imitation(tmp_path: Path, kind: str) -> None:
    """TRL imitates a mean over a micro-batch's tokens: of one pair it is the pair's."""
    given = pairs(STEPS * 2)
    wanted: dict[str, Any] = {"rpo_alpha": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}}
    value = {"length_normalized": True, "rpo_alpha": 0.5}[kind]
    more: dict[str, Any] = {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
    found = ours(tmp_path, given, method="dpo", beta=0.4, loss={kind: value}, **more)
    same(found, theirs(tmp_path, "DPO", given, 1, 2, beta=0.4, **wanted.get(kind, {"loss_type": "sigmoid_norm"})))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ktos_weights(tmp_path: Path) -> None:
    given, weights = judged(STEPS * 4), {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    more: dict[str, Any] = {"micro_batch_size": 4, "gradient_accumulation_steps": 1}
    found = ours(tmp_path, given, method="kto", beta=0.4, loss=weights, **more)
    same(found, theirs(tmp_path, "KTO", given, 4, 1, beta=0.4, **weights))


@pytest.mark.filterwarnings("ignore")
def test_kto_in_one_micro_batch_of_theirs(tmp_path: Path) -> None:
    """TRL compares a micro-batch's answers; ours are divided otherwise, and compared over the step all the same."""
    given = judged(STEPS * 4)
    more = {"learning_rate": 5e-3}
    found = ours(tmp_path, given, method="kto", beta=0.4, micro_batch_size=1, gradient_accumulation_steps=4, **more)
    same(found, theirs(tmp_path, "KTO", given, 4, 1, beta=0.4, **more), 5e-3, later=1e-4)  # at a high rate
