"""What is added to the loss of tokens is what its papers and transformers say; evaluations know nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from nbtune.data.batching.collate import collate
from nbtune.data.prepare.dataset import Builder
from nbtune.methods import METHODS
from nbtune.train.embedding_noise import add_noise, noisy
from nbtune.train.loss import loss_of
from tests.engine.test_against_trl import RATE, STEPS, ours, rows, same, theirs
from tests.support.family_cases import SIZES
from tests.train.test_optimizer import tiny

CPU = torch.device("cpu")


class Rows:
    """A batch of two rows of like length, all but the first tokens trained."""

    input_ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = input_ids.clone().index_fill(1, torch.tensor([0, 1]), -100)
    attention_mask = torch.ones_like(input_ids)
    loss_weights = cu_seqlens = max_seqlen = None
    trained_rows = torch.tensor([row * 9 + place - 1 for row in range(2) for place in range(2, 9)])
    trained_labels = input_ids[:, 2:].flatten()


def loss(model: Any, **args: float) -> torch.Tensor:
    made = loss_of(METHODS["sft"], options=args)
    return made(model.train(), Rows, denominator=14, device=CPU).loss  # type: ignore[arg-type]


def test_label_smoothing_is_transformers() -> None:
    model = tiny("LlamaConfig", SIZES)
    truth = LabelSmoother(epsilon=0.2)(model(input_ids=Rows.input_ids), Rows.labels, shift_labels=True)
    torch.testing.assert_close(loss(model, label_smoothing=0.2), truth)


def test_z_loss_is_the_squared_logarithm_of_the_denominator() -> None:
    model = tiny("LlamaConfig", SIZES)
    logits = model(input_ids=Rows.input_ids).logits[:, 1:-1]
    more = 0.1 * logits.exp().sum(-1).log().square().mean()
    torch.testing.assert_close(loss(model, z_loss=0.1), loss(model) + more)


@pytest.mark.parametrize("args", [{"z_loss": 0.1}, {"label_smoothing": 0.2}, {"z_loss": 0.1, "label_smoothing": 0.2}])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_fills_a_bucket_adds_nothing(args: dict[str, float], weighted: bool) -> None:
    """Places that are there for their number alone have no loss, whatever is added to one."""
    model, builder = tiny("LlamaConfig", SIZES), Builder(["rows"])
    for row in range(2):
        ids = Rows.input_ids[row].numpy().astype(np.int32)
        builder.add(ids, np.arange(9) > 1, 0, row, weight=1.0 if weighted else None)
    made, data = loss_of(METHODS["sft"], options=args), builder.build()
    for bucket in (14, 64):
        batch = collate(data, [0, 1], multiple=1, bucket=bucket)
        assert len(batch.trained_rows) == bucket
        found = made(model.train(), batch, denominator=14, device=CPU).loss
        torch.testing.assert_close(found, loss(model, **args))


def test_held_out_rows_are_measured_without() -> None:
    model = tiny("LlamaConfig", SIZES)
    made = loss_of(METHODS["sft"], options={"label_smoothing": 0.2, "z_loss": 0.1})
    held = made(model.eval(), Rows, denominator=14, device=CPU).loss  # type: ignore[arg-type]
    torch.testing.assert_close(held, loss(model))


def test_noise_is_for_training_alone_and_within_its_bounds() -> None:
    model = tiny("LlamaConfig", SIZES)
    clean = model.get_input_embeddings()(Rows.input_ids)
    add_noise(model, 5.0)
    off = (model.train().get_input_embeddings()(Rows.input_ids) - clean).detach().abs().max()
    limit = 5.0 / (9 * model.config.hidden_size) ** 0.5
    assert 0.9 * limit < float(off) <= limit
    assert torch.equal(model.eval().get_input_embeddings()(Rows.input_ids), clean)


@pytest.mark.filterwarnings("ignore")
def test_neftune_is_trls(tmp_path: Path) -> None:
    """The same noise, drawn alike; also where a run is resumed, since a step draws by its number alone."""
    given = rows(STEPS * 2)
    noise = {"neftune_noise_alpha": 5, "accelerate": False}
    found = ours(tmp_path, given, micro_batch_size=2, gradient_accumulation_steps=1, **noise)
    more: dict[str, Any] = {"completion_only_loss": True, "pad_to_multiple_of": 8, "neftune_noise_alpha": 5}
    same(found, theirs(tmp_path, "SFT", given, 2, 1, **more), RATE)


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_noise_is_known_beside_what_else_looks_at_embeddings(alpha: float) -> None:
    """Each step then draws by its number alone."""
    model = tiny("LlamaConfig", SIZES)
    look = lambda *_: None  # noqa: E731
    model.get_input_embeddings().register_forward_hook(look)
    add_noise(model, alpha)
    model.get_input_embeddings().register_forward_hook(look)
    assert noisy(model) == (alpha > 0)
