"""What the reference says of a row is asked once: later epochs, evaluations and surveys know it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from nbtune.methods import METHODS
from nbtune.train import kept_reference, logprobs
from nbtune.train.cuda_graph_stepper import FusedStepper
from nbtune.train.kept_reference import KeptReference
from nbtune.train.logprobs import HOST, Asking
from nbtune.train.loss import loss_of
from nbtune.train.mean_loss import mean_loss
from nbtune.train.optimizer import make_optimizer
from nbtune.train.stepper import Stepper
from tests.train.test_recorded_answers import batches_of, built


def stepper_of(kind: str, loss: Any) -> Any:
    if kind == "recorded":
        return FusedStepper(built(), weight_decay=0.0, max_grad_norm=1.0, device=HOST, loss=loss)
    model = built().model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(trained, "adamw", learning_rate=1e-3, weight_decay=0.0)
    return Stepper(model, loss, optimizer, max_grad_norm=1.0, seed=1, device=HOST)


def steps_of(stepper: Any, loss: Any, batches: Any, steps: range) -> list[float]:
    told: list[float] = []
    for index in steps:
        batch = batches.step(index)
        stepper.look_ahead(iter(batch), step=index)
        total = sum(loss.count(one) for one in batch)
        for number, one in enumerate(batch):
            stepper.accumulate(one, denominator=total, step=index, micro_step=number)
        updated = stepper.update(1e-3)
        told += [float(updated.loss), float(updated.norm), *map(float, updated.figures.values())]
    return told


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each forward of the reference."""
    seen: list[int] = []
    own = logprobs.in_place_of

    @contextmanager
    def counted(*args: Any) -> Iterator[Any]:
        seen.append(1)
        with own(*args) as there:
            yield there

    monkeypatch.setattr(logprobs, "in_place_of", counted)
    return seen


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ["plain", "recorded"])
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_the_second_epoch_asks_no_more_and_tells_the_same(
    name: str, kind: str, packing: bool, passes: list[int]
) -> None:
    batches, found, asked = batches_of(name, packing), [], []
    epochs = range(2 * batches.steps_per_epoch)
    for kept in (None, KeptReference(HOST)):
        loss = loss_of(METHODS[name], asking=Asking(kept=kept))
        before = len(passes)
        found.append(steps_of(stepper_of(kind, loss), loss, batches, epochs))
        asked.append(len(passes) - before)
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-5, nan_ok=True)
    of_others = len(epochs) * 2 if name == "kto" else 0  # prompts with other rows' answers are new each time
    assert asked[1] <= asked[0] // 2 + of_others
    if name == "dpo":
        assert asked[1] == asked[0] / 2


def test_a_resumed_run_goes_on_with_what_was_said(passes: list[int]) -> None:
    batches = batches_of("dpo", False)
    first = range(batches.steps_per_epoch)
    loss = loss_of(METHODS["dpo"], asking=Asking(kept=KeptReference(HOST)))
    stepper = stepper_of("recorded", loss)
    steps_of(stepper, loss, batches, first)
    state, before = stepper.state_dict(), len(passes)
    for kind in ("plain", "recorded"):
        again = loss_of(METHODS["dpo"], asking=Asking(kept=KeptReference(HOST)))
        other = stepper_of(kind, again)
        other.load_state_dict(state)
        steps_of(other, again, batches, range(len(first), 2 * len(first)))
    assert len(passes) == before


def test_held_out_rows_are_known_from_the_first_evaluation_on(passes: list[int]) -> None:
    model, batch = built().model, batches_of("dpo", False).step(0)
    loss = loss_of(METHODS["dpo"], asking=Asking(kept=KeptReference(HOST)))
    one, other = (mean_loss(model, loss, lambda: batch, device=HOST) for _ in range(2))
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert len(passes) == len(batch)


def test_rows_are_told_apart_by_what_is_learnt_of_them() -> None:
    batch = batches_of("dpo", False).step(0)[0]
    kept = KeptReference(HOST)
    known = kept.of(batch)
    assert known is not None
    assert known.values is None
    kept.keep(known, torch.arange(len(batch.examples)).float())
    again = kept.of(batch)
    assert again is not None
    assert again.values is not None
    assert again.values.tolist() == list(range(len(batch.examples)))
    batch.labels.flatten()[int(batch.trained_rows[0]) + 1] = -100
    other = kept.of(batch)
    assert other is not None
    assert other.values is None


def test_more_rows_than_there_is_room_for_at_first_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_reference, "_ROOM", 1)
    kept, other = KeptReference(HOST), KeptReference(HOST)
    batches, said = [batch for k in range(2) for batch in batches_of("dpo", False).step(k)], 0
    for batch in batches:
        known = kept.of(batch)
        assert known is not None
        assert known.values is None
        kept.keep(known, torch.arange(said, said := said + len(batch.examples)).float())
    other.load_state_dict(kept.state_dict())
    for which in (kept, other):
        found = [which.of(batch) for batch in batches]
        assert torch.cat([one.values for one in found]).tolist() == list(range(said))  # type: ignore[union-attr,misc]


def test_rows_that_were_looked_for_and_not_answered_move_no_others() -> None:
    """Memory was short, say: a checkpoint has the others' numbers as theirs, and these are still to be asked for."""
    unanswered, answered = (batches_of("dpo", False).step(k)[0] for k in range(2))
    kept, other = KeptReference(HOST), KeptReference(HOST)
    assert kept.of(unanswered) is not None
    known = kept.of(answered)
    assert known is not None
    kept.keep(known, torch.arange(len(answered.examples)).float() + 1)
    other.load_state_dict(kept.state_dict())
    assert len(other) == len(kept) == len(answered.examples)
    for which in (kept, other):
        (again, missing) = (which.of(batch) for batch in (answered, unanswered))
        assert again is not None
        assert again.values is not None
        assert again.values.tolist() == [float(i + 1) for i in range(len(answered.examples))]
        assert missing is not None
        assert missing.values is None
