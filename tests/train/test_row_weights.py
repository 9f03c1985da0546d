"""A row of weight 2 is a row that stands there twice: in the loss, in its gradients, however it is computed."""

import numpy as np
import pytest
import torch

from nbtune import models
from nbtune.data.batching.collate import collate, pack
from nbtune.data.prepare.dataset import Builder, Dataset
from nbtune.methods import METHODS
from nbtune.spec import AdapterSpec
from nbtune.train.distillation import DistillationLoss
from nbtune.train.loss import TokenLoss, UnlessIdle, loss_of

CPU = torch.device("cpu")
A, B, C = (list(range(10 * k + 5, 10 * k + n)) for k, n in ((1, 14), (2, 12), (3, 17)))


def rows(*texts, weights=None, values=None) -> Dataset:
    builder = Builder(["rows"])
    for k, ids in enumerate(texts):
        trained = np.arange(len(ids)) > 2
        value = None if values is None else values[k]
        weight = None if weights is None else weights[k]
        builder.add(np.array(ids, np.int32), trained, 0, k, value, weight=weight)
    return builder.build()


@pytest.fixture(scope="module", params=[True, False], ids=["accelerated", "stock"])
def built(request):
    made = models.build(
        "nbtune/tiny", adapter=AdapterSpec(r=4), seed=1, accelerate=request.param, device=CPU, dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    made.model.train()
    return made


def told(built, loss, batch, count):
    """The loss of a step, and the gradients that it has."""
    built.model.zero_grad(set_to_none=True)
    found = loss(built.model, batch, denominator=count(batch), device=CPU).loss
    found.backward()
    return float(found.detach()), [p.grad.clone() for p in built.model.parameters() if p.grad is not None]


def sft(built):
    patch = built.patch
    fused = patch is not None and "head" in patch.report.taken
    return TokenLoss(fused)


def same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert len(one[1]) == len(other[1]) > 0
    for left, right in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_weight_two_is_the_rows_tokens_counted_twice(built, packed):
    weighted, twice = rows(A, B, C, weights=(1, 2, 1)), rows(A, B, B, C)

    def batch(data):
        every = list(range(len(data)))
        return pack(data, [every], 64) if packed else collate(data, every)

    assert batch(weighted).weight == 6 + 2 * 4 + 9 == batch(twice).num_trained
    assert batch(weighted).num_trained == 6 + 4 + 9
    same(
        told(built, sft(built), batch(weighted), lambda b: b.weight),
        told(built, sft(built), batch(twice), lambda b: b.weight),
    )


def test_a_row_of_weight_two_is_distilled_twice(built):
    teacher = models.load_model("nbtune/tiny", dtype=torch.float32, device="cpu")
    loss = DistillationLoss(teacher, {"temperature": 2.0, "alpha": 0.3})
    one, other = (collate(data, [*range(len(data))]) for data in (rows(A, B, weights=(1, 2)), rows(A, B, B)))
    same(told(built, loss, one, loss.count), told(built, loss, other, loss.count))
    figures = [loss(built.model, batch, denominator=14, device=CPU).figures for batch in (one, other)]
    torch.testing.assert_close(*figures, rtol=1e-4, atol=1e-6)
    assert float(figures[0][1]) == 6 + 2 * 4
    assert float(figures[0][0]) > 1e-4  # the student has learnt something else


def test_a_weight_is_not_forgotten(built):
    """Literal: the mean of two rows' losses, one of which counts three times."""
    alone = [told(built, sft(built), collate(rows(text), [0]), lambda b: b.num_trained)[0] for text in (A, B)]
    both = told(built, sft(built), collate(rows(A, B, weights=(1, 3)), [0, 1]), lambda b: b.weight)[0]
    assert both == pytest.approx((6 * alone[0] + 3 * 4 * alone[1]) / (6 + 3 * 4), rel=1e-5)
    assert abs(alone[0] - alone[1]) > 1e-3


def test_a_pack_taken_apart_keeps_its_weights():
    batch = pack(rows(A, B, C, weights=(1, 2, 0.5)), [[0, 1], [2]], 32)
    apart = batch.unpacked()
    assert apart.weight == pytest.approx(batch.weight)
    assert apart.weight == 6 + 2 * 4 + 0.5 * 9
    assert batch.idle().weight == 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo"])
def test_a_pair_of_weight_two_is_two_pairs(built, method, packed):
    weighted = rows(A, B, C, A, weights=(2, 2, 1, 1), values=(1, 0, 1, 0))
    twice = rows(A, B, A, B, C, A, values=(1, 0, 1, 0, 1, 0))
    loss = loss_of(METHODS[method])
    every = [list(range(len(data))) for data in (weighted, twice)]
    one, other = (
        pack(data, [chosen], 64) if packed else collate(data, chosen)
        for data, chosen in zip((weighted, twice), every, strict=True)
    )
    assert loss.count(one) == 3 == loss.count(other)
    figures = [loss(built.model, batch, denominator=3, device=CPU).figures for batch in (one, other)]
    torch.testing.assert_close(*figures, rtol=1e-4, atol=1e-5)
    assert figures[0][1].tolist() == [3.0] * len(loss.figures)
    same(told(built, loss, one, loss.count), told(built, loss, other, loss.count))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("method", ["kto", "bco"])
def test_an_answer_of_weight_two_is_two_answers(built, method, packed):
    """Also in what good and bad ones are measured by over the whole step."""
    weighted = rows(A, B, C, weights=(2, 1, 1), values=(1, 0, 1))
    twice = rows(A, A, B, C, values=(1, 1, 0, 1))
    loss, every = loss_of(METHODS[method]), [list(range(len(data))) for data in (weighted, twice)]
    one, other = (
        pack(data, [chosen], 64) if packed else collate(data, chosen)
        for data, chosen in zip((weighted, twice), every, strict=True)
    )
    assert loss.count(one) == 4 == loss.count(other)
    same(told(built, loss, one, loss.count), told(built, loss, other, loss.count))
    figures = [loss(built.model, batch, denominator=4, device=CPU).figures for batch in (one, other)]
    torch.testing.assert_close(*figures, rtol=1e-4, atol=1e-5)
    assert figures[0][1].tolist() == [3.0, 1.0]  # good and bad ones


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_rows_that_only_keep_others_company_count_nothing(built, method):
    """They go through the model, since other processes' rows do, and what a step is divided by is without them."""
    values = None if method == "sft" else (1, 0, 1, 0)
    batch = collate(rows(A, B, C, A, values=values), [0, 1, 2, 3])
    loss = UnlessIdle(loss_of(METHODS[method]))
    assert loss.count(batch) == {"sft": 25, "dpo": 2, "kto": 4}[method]
    assert loss.count(batch.idle()) == 0
    told_of = loss(built.model, batch.idle(), denominator=1, device=CPU)
    assert float(told_of.loss.detach()) == 0
    assert told_of.figures is None
