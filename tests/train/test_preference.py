"""TRL's trainers are the oracle: on their own batches, their losses and gradients are ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nbtune.data.batching.sampler import collate, pack
from nbtune.data.prepare.dataset import Builder
from nbtune.errors import SpecError, TrainError
from nbtune.models.accelerate import accelerate
from nbtune.train.preference import PreferenceLoss, mismatched, reward, score_answers
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
    data = builder.build()
    if packed:
        half = len(data) // 2
        return pack(data, [list(range(half)), list(range(half, len(data)))], 48)
    return collate(data, list(range(len(data))))


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


def assert_same(loss: PreferenceLoss, batch: Any, truth: torch.Tensor, theirs: Any, *, steps: int) -> None:
    """Stock and accelerated, whole and packed alike."""
    expected = gradients(theirs, truth)
    for fast in (False, True):
        model = _model()
        if fast:
            assert "layers.0" in accelerate(model).report.taken
        model.train()
        found = loss(model, batch, denominator=loss.count(batch), device=CPU).loss
        assert loss.count(batch) == steps
        assert found.item() == pytest.approx(truth.item(), rel=2e-6 if not fast else 1e-5)
        for name, gradient in gradients(model, found).items():
            assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=2e-6), name


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
    assert_same(PreferenceLoss(method, {"beta": 0.3}), batch, truth, trainer.model, steps=4)


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
    truth, _ = trainer.get_batch_loss_metrics(trainer.model, b, "train")
    batch = _concatenated(trainer, b)
    assert_same(PreferenceLoss("simpo", {"beta": 2.5, "gamma": 0.7}), batch, truth, trainer.model, steps=4)


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
    found = PreferenceLoss("orpo", {"beta": 0.4})(model, batch, denominator=4, device=CPU).loss
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
    loss = PreferenceLoss("kto", {"beta": 0.3, "good_weight": 1.5, "bad_weight": 0.5})
    assert_same(loss, batch, truth, trainer.model, steps=4)


def test_kto_is_compared_on_the_same_mismatched_rows() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 0], [9, 10, 11, 12, 13]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    answer = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])
    for packed in (False, True):
        swapped = mismatched(ours(ids, mask, answer, [1.0, 0.0], packed))
        assert swapped.input_ids[:, :5].tolist() == [[5, 6, 12, 13, 0], [9, 10, 11, 7, 8]]
        assert (swapped.labels[:, :5] != -100).tolist() == [
            [False] * 2 + [True] * 2 + [False],
            [False] * 3 + [True] * 2,
        ]


def test_reward_against_trls_formula() -> None:
    better, worse = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.5, 0.5, -1.0])
    margin = torch.tensor([0.1, 0.2, 0.3])
    truth = -torch.nn.functional.logsigmoid(better - worse - margin).mean() + 0.01 * ((better + worse) ** 2).mean()
    assert reward(better, worse, margin=margin, center=0.01).mean().item() == pytest.approx(truth.item(), rel=1e-6)


def test_accumulated_micro_batches_are_one_batch() -> None:
    ids = torch.randint(3, 97, (8, 9), generator=torch.Generator().manual_seed(5))
    mask, answer = torch.ones_like(ids), (torch.arange(9) > 3).expand(8, -1)
    loss, model = PreferenceLoss("dpo"), _model().train()
    whole = loss(model, ours(ids, mask, answer, [1.0, 0.0] * 4), denominator=4, device=CPU).loss.item()
    parts = [
        loss(model, ours(ids[i : i + 2], mask[:2], answer[:2], [1.0, 0.0]), denominator=4, device=CPU).loss.item()
        for i in range(0, 8, 2)
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_errors_are_for_people() -> None:
    with pytest.raises(SpecError, match="no method 'dop'"):
        PreferenceLoss("dop")
    model = _model()
    ids = torch.randint(3, 97, (2, 6))
    batch = ours(ids, torch.ones_like(ids), (torch.arange(6) > 2).expand(2, -1), [1.0, 0.0])
    with pytest.raises(TrainError, match="without its adapter"):
        PreferenceLoss("dpo")(model.base_model.model, batch, denominator=1, device=CPU)


def test_kto_of_a_single_answer_has_nothing_to_compare_with() -> None:
    model, ids = _model(), torch.randint(3, 97, (1, 6), generator=torch.Generator().manual_seed(8))
    alone = ours(ids, torch.ones_like(ids), (torch.arange(6) > 2)[None], [1.0])
    found = PreferenceLoss("kto", {"beta": 0.5})(model, alone, denominator=1, device=CPU).loss.item()
    with model.disable_adapter():
        reference, _ = score_answers(model, alone, device=CPU)
    ratio = (score_answers(model, alone, device=CPU)[0] - reference).item()
    assert found == pytest.approx(1 - 1 / (1 + np.exp(-0.5 * ratio)), rel=1e-5)


def test_a_model_whose_head_is_not_ours_is_asked_for_logits() -> None:
    model = _model().eval()
    ids = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(2))
    batch = ours(ids, torch.ones_like(ids), (torch.arange(7) > 2).expand(2, -1), [1.0, 0.0])
    logprobs, tokens = score_answers(model, batch, device=CPU)
    assert tokens.tolist() == [4.0, 4.0]

    class Wrapped(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            return SimpleNamespace(logits=model(**inputs).logits)

    plain, _ = score_answers(Wrapped(), batch, device=CPU)
    assert torch.allclose(plain, logprobs, rtol=1e-5)


class InOrder:
    steps_per_epoch = 3

    def __init__(self) -> None:
        ids = torch.randint(3, 97, (12, 9), generator=torch.Generator().manual_seed(6))
        answer = (torch.arange(9) > 3).expand(4, -1)
        self.batches = [ours(ids[i : i + 4], torch.ones(4, 9), answer, [1.0, 0.0] * 2) for i in (0, 4, 8)]

    def step(self, index: int) -> list[Any]:
        return [self.batches[index % 3], self.batches[(index + 1) % 3]]


def test_the_loop_learns_from_pairs() -> None:
    from nbtune import events
    from nbtune.train.control import MemoryControl
    from nbtune.train.evaluate import mean_loss
    from nbtune.train.loop import Jobs, LoopOptions, Progress, train
    from nbtune.train.stepper import Stepper

    loss, model, batches = PreferenceLoss("dpo", {"beta": 1.0}), _model().train(), InOrder()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    stepper = Stepper(model, loss, optimizer, max_grad_norm=1.0, seed=1, device=CPU)
    said: list[Any] = []
    options = LoopOptions(25, 1e-2, lambda _: 1.0, 10**9, None, 1e9, count=loss.count)
    jobs = Jobs(
        save=lambda progress: events.Checkpoint(step=progress.step, folder=""),
        evaluate=lambda look: None,
        sample=lambda step, look: [],
        between=lambda _: None,
    )
    before, _ = mean_loss(model, loss, batches.batches, device=CPU, count=loss.count)
    train(stepper, batches, options, jobs, progress=Progress(), emit=said.append, control=MemoryControl())
    steps = [e.loss for e in said if isinstance(e, events.Step)]
    assert steps[0] == pytest.approx(before, abs=0.2), "a mean over pairs, not over tokens"
    assert mean_loss(model, loss, batches.batches, device=CPU, count=loss.count)[0] < 0.6 * before
