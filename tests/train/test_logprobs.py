"""What a model says of answers, and the losses made of it as the loop calls them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nbtune.errors import TrainError
from nbtune.methods import METHODS
from nbtune.train.logprobs import score_answers, tokens_of
from nbtune.train.loss import AnswerLoss
from tests.methods.test_against_trl import ours
from tests.train.test_against_trl import _model

CPU = torch.device("cpu")


def test_kto_is_compared_on_the_same_mismatched_rows() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 0], [9, 10, 11, 12, 13]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    answer = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])
    for packed in (False, True):
        batch = ours(ids, mask, answer, [1.0, 0.0], packed)
        assert tokens_of(batch).tolist() == [2.0, 2.0]
        swapped = batch.mismatched
        assert swapped.input_ids[:, :5].tolist() == [[5, 6, 12, 13, 0], [9, 10, 11, 7, 8]]
        assert (swapped.labels[:, :5] != -100).tolist() == [
            [False] * 2 + [True] * 2 + [False],
            [False] * 3 + [True] * 2,
        ]


def test_in_a_pack_each_document_has_its_own_tokens_from_the_second_on() -> None:
    """The first token is what predicts the second: it is its own document's, not the end of the one before."""
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(6))
    mask = torch.tensor([[1] * 6 + [0] * 3, [1] * 9])
    alone, packed = (ours(ids, mask, mask.roll(1, 1) * mask, [1.0, 0.0], way) for way in (False, True))
    assert tokens_of(packed).tolist() == tokens_of(alone).tolist() == [5.0, 8.0]
    model = _model().eval()
    with torch.no_grad():
        found = [score_answers(model, batch, device=CPU)[0] for batch in (alone, packed)]
    torch.testing.assert_close(*found)


def test_accumulated_micro_batches_are_one_batch() -> None:
    ids = torch.randint(3, 97, (8, 9), generator=torch.Generator().manual_seed(5))
    mask, answer = torch.ones_like(ids), (torch.arange(9) > 3).expand(8, -1)
    loss, model = AnswerLoss(METHODS["dpo"]), _model().train()
    whole = loss(model, ours(ids, mask, answer, [1.0, 0.0] * 4), denominator=4, device=CPU).loss.item()
    parts = [
        loss(model, ours(ids[i : i + 2], mask[:2], answer[:2], [1.0, 0.0]), denominator=4, device=CPU).loss.item()
        for i in range(0, 8, 2)
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_a_model_without_an_adapter_has_no_reference() -> None:
    model = _model()
    ids = torch.randint(3, 97, (2, 6))
    batch = ours(ids, torch.ones_like(ids), (torch.arange(6) > 2).expand(2, -1), [1.0, 0.0])
    with pytest.raises(TrainError, match="without its adapter") as caught:
        AnswerLoss(METHODS["dpo"])(model.base_model.model, batch, denominator=1, device=CPU)
    assert "orpo, simpo" in str(caught.value.fix)


def test_kto_of_a_single_answer_has_nothing_to_compare_with() -> None:
    model, ids = _model(), torch.randint(3, 97, (1, 6), generator=torch.Generator().manual_seed(8))
    alone = ours(ids, torch.ones_like(ids), (torch.arange(6) > 2)[None], [1.0])
    found = AnswerLoss(METHODS["kto"], {"beta": 0.5})(model, alone, denominator=1, device=CPU).loss.item()
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
    from nbtune.train.loop import Jobs, LoopOptions, train
    from nbtune.train.mean_loss import mean_loss
    from nbtune.train.progress import Progress
    from nbtune.train.stepper import Stepper
    from tests.support.control import MemoryControl

    loss, model, batches = AnswerLoss(METHODS["dpo"], {"beta": 1.0}), _model().train(), InOrder()
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
    before = mean_loss(model, loss, lambda: batches.batches, device=CPU).loss
    train(stepper, batches, options, jobs, progress=Progress(), emit=said.append, control=MemoryControl())
    steps = [e.loss for e in said if isinstance(e, events.Step)]
    assert steps[0] == pytest.approx(before, abs=0.2), "a mean over pairs, not over tokens"
    assert mean_loss(model, loss, lambda: batches.batches, device=CPU).loss < 0.6 * before
