"""A pair's prompt goes through the model once: the losses and gradients of two rows, of every family that is ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nbtune.data.batching.collate import Batch, collate, pack
from nbtune.data.prepare.dataset import Builder, Dataset
from nbtune.methods import METHODS
from nbtune.models import Built
from nbtune.models.accelerate import apply
from nbtune.models.adapters import add_adapter
from nbtune.spec import AdapterSpec
from nbtune.train.cuda_graph_stepper import FusedStepper
from nbtune.train.logprobs import HOST, Asking, question, score
from nbtune.train.loss import loss_of
from nbtune.train.shared_prompts import can_share, laid_out
from tests.support.model_classes import CLASSES, make

PROMPTS, ANSWERS = (5, 21, 14, 9), ((7, 3), (4, 4), (2, 9), (6, 1))
FAST = ("llama", "gemma2", "mpt", "gpt2", "qwen3_moe")
OURS = tuple(name for name, row in CLASSES.items() if not row.leaks)


def pairs(least: int = 3, most: int = 96) -> Dataset:
    """Pairs of which one answer may begin as the other does."""
    draw, builder = np.random.default_rng(0), Builder(["rows"])
    for pair, (begin, lengths) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        prompt, like = draw.integers(least, most, begin), draw.integers(least, most, 2)
        for better, length in zip((1.0, 0.0), lengths, strict=True):
            ids = np.concatenate([prompt, like, draw.integers(least, most, length)]).astype(np.int32)
            builder.add(ids, np.arange(len(ids)) >= begin, 0, pair, value=better)
    return builder.build()


def batches() -> dict[str, Batch]:
    data = pairs()
    return {"rows": collate(data, list(range(8))), "packs": pack(data, [[0, 1, 2, 3], [4, 5, 6, 7]], 128)}


def built(name: str = "llama", rank: int = 4) -> Built:
    model = add_adapter(make(name), AdapterSpec(r=rank), seed=0)
    for at, parameter in model.named_parameters():
        if "lora_B" in at:
            torch.nn.init.normal_(parameter, std=0.05)
    return Built(model.train(), None, None, apply(model))  # type: ignore[arg-type]


def told(model: Any, batch: Batch, *, share: bool, method: str = "dpo") -> tuple[float, torch.Tensor]:
    """The loss of a batch, and all gradients."""
    model.zero_grad()
    loss = loss_of(METHODS[method], asking=Asking(share=share))
    found = loss(model, batch, denominator=4, device=HOST)
    found.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    return found.loss.item(), torch.cat([p.grad.flatten() for p in trained if p.grad is not None])


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in OURS])
def test_losses_and_gradients_are_those_of_two_rows(name: str) -> None:
    model = built(name)
    if not can_share(model):
        assert model.patch is not None
        assert not model.patch.whole or "head" not in model.patch.report.taken, "all layers are ours"
        return
    for batch in batches().values():
        (truth, gradient), (loss, ours) = (told(model.model, batch, share=share) for share in (False, True))
        assert loss == pytest.approx(truth, rel=1e-6)
        assert float((ours - gradient).norm() / gradient.norm()) < 2e-6


@pytest.mark.parametrize("policy", ["selective", "recompute"])
def test_whatever_is_kept(policy: Any) -> None:
    model = built("qwen3")
    assert model.patch is not None
    model.patch.set_policy(policy)
    batch = batches()["rows"]
    (truth, gradient), (loss, ours) = (told(model.model, batch, share=share) for share in (False, True))
    assert loss == pytest.approx(truth, rel=1e-6)
    assert float((ours - gradient).norm() / gradient.norm()) < 2e-6


@pytest.mark.parametrize("kind", ["rows", "packs"])
def test_every_token_stands_once(kind: str) -> None:
    batch, model = batches()[kind], built()
    asked = question(batch, HOST, share=True)
    assert asked["input_ids"].numel() < batch.input_ids.numel()
    # of each pair twice: what is not the prompt, and the prompt's last token, which predicts both answers' first
    tokens = sum(begin + 1 + 2 * 2 + sum(lengths) for begin, lengths in zip(PROMPTS, ANSWERS, strict=True))
    assert len(set(asked["shared.first"].tolist())) == tokens
    rows = asked["answers.rows"][batch.trained_labels != -100]
    assert len(rows.unique()) == len(rows), "two labels of one token: its gradient would be lost"
    found = [score(model.model, question(batch, HOST, share=share))[0] for share in (False, True)]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-5)


def test_what_shares_little_is_left_as_it_is() -> None:
    builder = Builder(["rows"])
    for better in (1.0, 0.0):
        builder.add(np.arange(64, dtype=np.int32) + int(better), np.arange(64) >= 4, 0, 0, value=better)
    batch = collate(builder.build(), [0, 1])
    assert laid_out(batch, {}) is None
    assert "shared.token" not in question(batch, HOST, share=True)


def test_a_model_that_counts_places_by_itself_does_not_share() -> None:
    model = built("gpt2")
    assert can_share(model)
    inner: Any = model.model.get_base_model().transformer

    def counted(_: Any, args: Any, kwargs: Any) -> Any:
        count = kwargs["input_ids"].shape[1]
        return args, {**kwargs, "position_ids": torch.arange(count)[None]}

    handle = inner.register_forward_pre_hook(counted, with_kwargs=True, prepend=True)
    assert not can_share(model)
    handle.remove()


def test_layers_that_are_not_ours_any_more_refuse() -> None:
    model = built()
    asked = question(batches()["rows"], HOST, share=True)
    assert model.patch is not None
    model.patch.layers[0].stock_only = True
    with pytest.raises(RuntimeError, match="not all layers"):
        score(model.model, asked)


@pytest.mark.parametrize("kind", ["rows", "packs"])
def test_recorded_steps_share_too(kind: str) -> None:
    batch, found = batches()[kind], []
    for share in (False, True):
        loss: Any = loss_of(METHODS["dpo"], asking=Asking(share=share))
        stepper = FusedStepper(built(), weight_decay=0.0, max_grad_norm=1.0, device=HOST, loss=loss)
        steps = []
        for index in range(2):
            stepper.accumulate(batch, denominator=4, step=index, micro_step=0)
            updated = stepper.update(1e-3)
            steps += [float(updated.loss), float(updated.norm), *map(float, updated.figures.values())]
        found.append(steps)
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-5)


def test_a_model_one_of_whose_layers_is_its_own_shares_nothing() -> None:
    model = make("llama")
    norm = model.model.layers[1].post_attention_layernorm

    class Odd(type(norm)):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return torch.tanh(super().forward(hidden_states))

    norm.__class__ = Odd
    model = add_adapter(model, AdapterSpec(r=4), seed=0)
    partly = Built(model.train(), None, None, apply(model))  # type: ignore[arg-type]
    assert partly.patch is not None
    assert {"layers.0", "head"} <= partly.patch.report.taken.keys()
    assert "layers.1" in partly.patch.report.left
    assert not can_share(partly)
