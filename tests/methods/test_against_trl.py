"""TRL's trainers are the oracle: on their own batches, their losses and gradients are ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nbtune.data.batching.collate import collate, pack
from nbtune.data.batching.mismatched import mismatched
from nbtune.data.prepare.dataset import Builder
from nbtune.methods import METHODS
from nbtune.models.accelerate import apply
from nbtune.train.logprobs import answers_of
from nbtune.train.loss import AnswerLoss
from tests.support.every import some
from tests.train.test_against_trl import _model

CPU = torch.device("cpu")
COMMON = {
    "per_device_train_batch_size": 4, "bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no",
    "logging_strategy": "no", "disable_tqdm": True, "seed": 1, "max_steps": 1,
}  # fmt: skip


def rows() -> list[dict[str, str]]:
    chance = np.random.default_rng(3)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in chance.integers(0, 97, count))

    return [
        {"prompt": words(2 + i % 3), "chosen": " " + words(3 + i % 4), "rejected": " " + words(2 + i % 5)}
        for i in range(4)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(97)} | {"<s>": 97, "</s>": 98, "<pad>": 99}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>", bos_token="<s>")


def ours(ids: Any, mask: Any, answer: Any, values: list[float], packed: bool = False) -> Any:
    """A batch of nbtune's, of the very tokens of a batch of TRL's."""
    builder = Builder(["rows"])
    for i, row in enumerate(ids):
        kept = mask[i].bool().numpy()
        builder.add(row.numpy()[kept].astype(np.int32), answer[i].bool().numpy()[kept], 0, i, values[i])
    data, every = builder.build(), list(range(len(values)))
    half = len(every) // 2
    batch = pack(data, [every[:half], every[half:]], 48) if packed else collate(data, every)
    return replace(batch, mismatched=mismatched(data, every, every))


def against_the_base(trainer: Any) -> Any:
    """TRL compares a trained adapter with a copy of itself: without the copy it compares with the base."""
    if "ref" in trainer.model.peft_config:  # older versions have none
        trainer.model.delete_adapter("ref")
    return trainer.model.train()


def side_by_side(better: Any, worse: Any) -> Any:
    width = max(better.shape[1], worse.shape[1])
    both = [torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (better, worse)]
    return torch.stack(both, 1).flatten(0, 1)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(loss: AnswerLoss, batch: Any, truth: torch.Tensor, theirs: Any, *, steps: int) -> None:
    """Stock and accelerated, whole and packed alike."""
    expected = gradients(theirs, truth)
    for fast in (False, True):
        model = _model()
        if fast:
            assert "layers.0" in apply(model).report.taken
        model.train()
        found = loss(model, batch, denominator=loss.count(batch), device=CPU).loss
        assert loss.count(batch) == steps
        assert found.item() == pytest.approx(truth.item(), rel=2e-6 if not fast else 1e-5)
        for name, gradient in gradients(model, found).items():
            assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=2e-6), name


def assert_same_figures(loss: AnswerLoss, batch: Any, theirs: Any) -> None:
    """What is watched besides the loss, of a new model: the names are ours, the numbers TRL's."""
    method, options = loss.method, {**loss.method.options, **loss.options}
    assert method.metrics is not None
    with torch.no_grad():
        found = method.metrics(*method.sides(answers_of(_model().train(), batch, method, device=CPU)), **options)
    names = {
        "reward_good": "chosen",
        "reward_bad": "rejected",
        "reward_chosen": "chosen",
        "reward_rejected": "rejected",
    }
    names |= {"margin": "margins", "accuracy": "accuracies"}
    for name, figure in some(found.items()):
        told = theirs[f"rewards/{names[name]}"]
        told = told[-1] if isinstance(told, list) else told
        assert figure.nanmean().item() == pytest.approx(float(told), rel=1e-4, abs=1e-5), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("method", "name"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_dpo_and_ipo(method: str, name: str, packed: bool, tokenizer: Any, tmp_path: Any) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(output_dir=str(tmp_path), loss_type=name, beta=0.3, gradient_checkpointing=False, **COMMON)
    trainer = DPOTrainer(_model(), args=config, train_dataset=Dataset.from_list(rows()), processing_class=tokenizer)
    b = next(iter(trainer.get_train_dataloader()))
    truth = trainer.compute_loss(against_the_base(trainer), dict(b))
    parts = [side_by_side(*b[k].chunk(2)) for k in ("input_ids", "attention_mask", "completion_mask")]
    batch = ours(*parts, [1.0, 0.0] * 4, packed)
    loss = AnswerLoss(METHODS[method], {"beta": 0.3})
    assert_same(loss, batch, truth, trainer.model, steps=4)
    if method == "dpo":  # of ipo TRL tells sums over tokens, which are not what its loss compares
        assert_same_figures(loss, batch, trainer._metrics["train"])


def _concatenated(trainer: Any, b: Any) -> Any:
    names = ("input_ids", "attention_mask", "labels")
    ids, mask, labels = (side_by_side(b[f"chosen_{n}"], b[f"rejected_{n}"]) for n in names)
    return ours(ids, mask, (labels != -100) & mask.bool(), [1.0, 0.0] * 4)


@pytest.mark.filterwarnings("ignore")
def test_simpo(tokenizer: Any, tmp_path: Any) -> None:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 0.7}
    config = CPOConfig(output_dir=str(tmp_path), gradient_checkpointing=False, **options, **COMMON)
    trainer = CPOTrainer(_model(), args=config, train_dataset=Dataset.from_list(rows()), processing_class=tokenizer)
    b = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    truth, metrics = trainer.get_batch_loss_metrics(trainer.model, b, "train")
    batch, loss = _concatenated(trainer, b), AnswerLoss(METHODS["simpo"], {"beta": 2.5, "gamma": 0.7})
    assert_same(loss, batch, truth, trainer.model, steps=4)
    assert_same_figures(loss, batch, metrics)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sigmoid", "hinge"])
def test_cpo(kind: str, tokenizer: Any, tmp_path: Any) -> None:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    given = {"loss_type": kind, "cpo_alpha": 0.6, "beta": 0.4}
    config = CPOConfig(output_dir=str(tmp_path), gradient_checkpointing=False, **given, **COMMON)
    trainer = CPOTrainer(_model(), args=config, train_dataset=Dataset.from_list(rows()), processing_class=tokenizer)
    b = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    truth, metrics = trainer.get_batch_loss_metrics(trainer.model, b, "train")
    batch, loss = _concatenated(trainer, b), AnswerLoss(METHODS["cpo"], given)
    assert_same(loss, batch, truth, trainer.model, steps=4)
    assert_same_figures(loss, batch, metrics)


@pytest.mark.filterwarnings("ignore")
def test_orpo_but_for_the_prompts_tokens(tokenizer: Any, tmp_path: Any) -> None:
    """TRL imitates prompts too: the rest is compared by itself."""
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    config = ORPOConfig(output_dir=str(tmp_path), beta=0.4, gradient_checkpointing=False, **COMMON)
    trainer = ORPOTrainer(_model(), args=config, train_dataset=Dataset.from_list(rows()), processing_class=tokenizer)
    b = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    _, metrics = trainer.get_batch_loss_metrics(trainer.model, b, "train")
    batch, model = _concatenated(trainer, b), _model().train()
    loss = AnswerLoss(METHODS["orpo"], {"beta": 0.4})
    found = loss(model, batch, denominator=4, device=CPU).loss
    assert_same_figures(loss, batch, metrics)
    chosen = {k: b[f"chosen_{k}"] for k in ("input_ids", "attention_mask", "labels")}
    imitation = model(**chosen, use_cache=False).loss
    assert found.item() == pytest.approx((imitation - 0.4 * metrics["log_odds_ratio"]).item(), rel=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_kto(tokenizer: Any, tmp_path: Any) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    told = [{"prompt": r["prompt"], "completion": r["chosen"], "label": i % 3 > 0} for i, r in enumerate(rows())]
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    config = KTOConfig(output_dir=str(tmp_path), beta=0.3, gradient_checkpointing=False, **weights, **COMMON)
    trainer = KTOTrainer(_model(), args=config, train_dataset=Dataset.from_list(told), processing_class=tokenizer)
    b = next(iter(trainer.get_train_dataloader()))
    truth = trainer.compute_loss(against_the_base(trainer), dict(b))
    truth = truth[0] if isinstance(truth, tuple) else truth
    labels = [float(v) for v in b["label"]]
    if "completion_mask" in b:
        batch = ours(b["input_ids"], b["attention_mask"], b["completion_mask"], labels)
    else:  # trl 1.0
        answer = b["completion_labels"] != -100
        batch = ours(b["completion_input_ids"], b["completion_attention_mask"], answer, labels)
    loss = AnswerLoss(METHODS["kto"], {"beta": 0.3, **weights})
    assert_same(loss, batch, truth, trainer.model, steps=4)
    assert_same_figures(loss, batch, trainer._metrics["train"])
