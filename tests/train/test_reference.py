"""The reference of a run that starts from another one's weights, against a second model that holds them."""

from __future__ import annotations

import copy

import pytest
import torch

from nbtune.methods import METHODS, Answers
from nbtune.models.accelerate import apply
from nbtune.train.logprobs import Asking, score_answers
from nbtune.train.loss import AnswerLoss
from nbtune.train.reference import StartingWeights
from tests.methods.test_against_trl import ours
from tests.train.test_against_trl import _model

CPU = torch.device("cpu")


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_losses_and_gradients_are_those_of_two_models(method: str, fast: bool) -> None:
    start, model = _model(), _model()
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for parameter in (p for p in model.parameters() if p.requires_grad):  # it has learnt something since
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
    now, truth = {n: p.detach().clone() for n, p in model.named_parameters()}, copy.deepcopy(model)
    if fast:
        assert "head" in apply(model).report.taken
    ids = torch.randint(3, 97, (4, 9), generator=torch.Generator().manual_seed(5))
    batch = ours(ids, torch.ones_like(ids), (torch.arange(9) > 3).expand(4, -1), [1.0, 0.0] * 2)
    loss = AnswerLoss(METHODS[method], {"beta": 0.5}, Asking(StartingWeights(model, weights)))
    found = loss(model.train(), batch, denominator=2, device=CPU).loss
    found.backward()
    if method != "kto":
        values = others = None
    else:
        values, other = batch.values, batch.mismatched
        with torch.no_grad():
            others = Answers(*score_answers(truth, other, device=CPU), score_answers(start, other, device=CPU)[0])
    with torch.no_grad():
        reference, _ = score_answers(start, batch, device=CPU)
    answers = Answers(*score_answers(truth, batch, device=CPU), reference, values, mismatched=others)
    chosen = METHODS[method]
    true = chosen.loss(*chosen.sides(answers), **{**chosen.options, "beta": 0.5}).sum() / 2
    true.backward()
    assert found.item() == pytest.approx(true.item(), rel=1e-5)
    for (name, mine), theirs in zip(model.named_parameters(), truth.parameters(), strict=True):
        assert torch.equal(mine.detach(), now[name]), "what is trained is back in its place"
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_reference_drops_nothing() -> None:
    model = _model().train()
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    drop = torch.nn.Dropout(0.5)
    model.add_module("drop", drop)
    start = StartingWeights(model, weights)
    with start.put_in(model):
        assert not drop.training
        assert not torch.is_grad_enabled()
    assert drop.training
