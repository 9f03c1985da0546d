"""How a step is divided does not matter: for every method of the registry, over micro-batches, packs and processes.

Rows are of very unequal lengths, so that a mean of means is another number. Updates are plain gradient steps (SGD):
Adam would divide by gradients that are next to nothing. Weights are fp64, so that an update can be compared to 1e-6 of
its own size: what fp32 keeps of a weight is 3e-6 of these updates.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nbtune import events
from nbtune.data.batching.sampler import BatchPlan
from nbtune.data.prepare.dataset import Builder, Dataset
from nbtune.methods import METHODS, Answers, Method
from nbtune.models.heads import Head, add_head
from nbtune.train.distillation import DistillationLoss
from nbtune.train.distributed import RankedControl, RankedStepper, Ranks
from nbtune.train.loop import Jobs, LoopOptions, train
from nbtune.train.loss import Loss, loss_of
from nbtune.train.progress import Progress
from nbtune.train.stepper import Stepper, Updated
from tests.support.control import MemoryControl
from tests.train.test_against_trl import _model

ROWS, STEPS, RATE, CPU = 16, 2, 0.05, torch.device("cpu")


def centred(answers: Answers, *, beta: float) -> torch.Tensor:
    """A method as there may be one: rewards against those of the step, as far as these spread."""
    rewards = answers.of_step.ratios
    assert answers.values is not None
    sign = 2 * answers.values - 1
    return -torch.nn.functional.logsigmoid(beta * sign * (answers.ratios - rewards.mean()) / (rewards.std() + 1))


CENTRED = Method(
    name="centred", title="", sentence="", rows="feedback", loss=centred, options={"beta": 0.5}, reference=True,
    of_step="answers",
)  # fmt: skip
ALL = {name: method for name, method in METHODS.items() if not method.online} | {"centred": CENTRED}
# (how a step of those that TRL runs is divided: tests/engine/test_online.py)


def rows_of(method: Method) -> Dataset:
    """Answers of 1 to 30 tokens; some rows count more or less than once."""
    chance, builder = np.random.default_rng(7), Builder(["rows"])
    for row in range(ROWS):
        prompt = chance.integers(3, 97, 2 + row % 5)
        for side in range(method.group):
            answer = chance.integers(3, 97, [1, 30, 4, 2, 17][(3 * row + 2 * side) % 5])
            trained = np.arange(len(prompt) + len(answer)) >= len(prompt)
            value = float(side == 0 if method.pairwise else row % 3 > 0)
            judged = None if method.by_tokens else value
            ids = np.concatenate([prompt, answer]).astype(np.int32)
            steps = np.where(chance.random(len(ids)) < 0.3, chance.integers(0, 2, len(ids)), np.nan)
            steps[-1] = value  # one at least
            of_steps = steps.astype(np.float32) if method.head == "token" else None
            builder.add(ids, trained, 0, row, judged, of_steps, [1.0, 0.5, 3.0][row % 3])
    return builder.build()


def another() -> torch.nn.Module:
    """A model that says something else: a teacher."""
    model, chance = _model().double().eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * p.std() * torch.randn(p.shape, generator=chance))
    return model


class Short:
    """Says that memory is short when it is called for the n-th time, by a forward, or in the middle of a backward."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def watch(self, model: torch.nn.Module) -> None:
        model.register_forward_pre_hook(self)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self)


def learnt(
    method: Method,
    micro: int,
    packed: bool,
    ranks: Ranks | None = None,
    *,
    short: Short | None = None,
    rows: int = 0,
    after: Callable[[Updated], None] | None = None,
) -> dict[str, Any]:
    """Losses and figures of some steps, and what these add to the weights; `rows`: sequences of a step at most;
    `after`: is called with what each step tells."""
    torch.manual_seed(0)
    model, outputs = _model().double().train(), len(method.labels) or 3
    if method.head:
        add_head(model, Head(method.head, tuple("abc"[:outputs])), seed=3)
    if short is not None:
        short.watch(model)
    loss: Loss = loss_of(method, outputs=outputs)
    if method.teacher:
        loss = DistillationLoss(another(), method.options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    make = Stepper if ranks is None else lambda *a, **k: RankedStepper(ranks, *a, **k)
    stepper = make(model, loss, torch.optim.SGD(parameters), max_grad_norm=0.0, seed=1, device=CPU)
    if after is not None:
        update = stepper.update
        stepper.update = lambda rate: (after(done := update(rate)), done)[1]
    control = MemoryControl()
    together = None if ranks is None else RankedControl(ranks, control)
    per_step = rows or (4 if packed else 8)
    batches = BatchPlan(
        rows_of(method), micro_batch_size=micro, per_step=per_step, seed=2, packing=packed,
        sequence_len=40 * method.group, together=method.group, mismatch=method.mismatched,
        rank=0 if ranks is None else ranks.rank, ranks=1 if ranks is None else ranks.count,
    )  # fmt: skip
    said: list[events.Event] = []
    agree: Any = list if together is None else together.agree
    options = LoopOptions(
        STEPS, RATE, lambda _: 1.0, 10**9, None, 1e9, count=loss.count, agree=agree, several=ranks is not None
    )

    def give_up(step: int) -> events.Warning:
        batches.divide(max(1, batches.micro_batch_size // 2))
        return events.Warning(message="short", step=step)

    jobs = Jobs(
        save=lambda progress: events.Checkpoint(step=progress.step, folder=""),
        evaluate=lambda look: None,
        sample=lambda step, look: [],
        between=lambda _: None,
        give_up=give_up,
    )
    train(stepper, batches, options, jobs, progress=Progress(), emit=said.append, control=together or control)
    told = [event for event in said if isinstance(event, events.Step)]
    losses, figures = [event.loss for event in told], [event.metrics for event in told]
    gave_up = sum(isinstance(event, events.Warning) for event in said)
    updates = [p.detach() - begun for p, begun in zip(parameters, start, strict=True)]
    return {"losses": losses, "figures": figures, "updates": updates, "short": gave_up}


def cases() -> Iterator[tuple[str, bool]]:
    yield from ((name, packed) for name in ALL for packed in (False, True))


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(expected["losses"]) == STEPS
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6, abs=1e-6)
    for ours, theirs in zip(found["figures"], expected["figures"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    for ours, theirs in zip(found["updates"], expected["updates"], strict=True):
        assert float((ours - theirs).norm()) <= 1e-6 * float(theirs.norm())


@pytest.fixture(scope="module")
def whole() -> dict[tuple[str, bool], dict[str, Any]]:
    """Each method's steps in one micro-batch."""
    return {(name, packed): learnt(ALL[name], 8, packed) for name, packed in cases()}


OFTEN = [name if k % 2 == 0 else pytest.param(name, marks=pytest.mark.slow) for k, name in enumerate(ALL)]


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ALL)
def test_micro_batches(whole: Any, name: str, packed: bool) -> None:
    moved = max(update.abs().max() for update in whole[name, packed]["updates"])
    assert moved > 1e-4, "there is something to compare"
    for micro in (1, 2, 4):
        same(learnt(ALL[name], micro, packed), whole[name, packed])


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "reward", "distill"])
def test_what_a_step_tells_holds_nothing_of_its_micro_batches(name: str) -> None:
    """Numbers alone: with what they were made of, all micro-batches were in memory at once."""
    told: list[Updated] = []
    learnt(ALL[name], 4, False, after=told.append)
    assert len(told) == STEPS
    for done in told:
        assert [one.requires_grad for one in (done.loss, done.norm, *done.figures.values())].count(True) == 0


@pytest.mark.parametrize("name", ALL)
def test_packs(name: str) -> None:
    """Steps of all rows, each in a sequence of its own or several in one."""
    same(learnt(ALL[name], 2, True, rows=ROWS), learnt(ALL[name], ROWS, False, rows=ROWS))


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OFTEN)
def test_memory_that_was_short(whole: Any, name: str, packed: bool) -> None:
    """Somewhere in the second step: it is done again in smaller parts, and nothing of the first try is left."""
    counted = Short(0)
    learnt(ALL[name], 8, packed, short=counted)
    at = random.Random(f"{name} {packed}").randint(counted.calls // 2 + 1, counted.calls)
    found = learnt(ALL[name], 8, packed, short=Short(at))
    assert found["short"] == 1
    same(found, whole[name, packed])


@pytest.mark.parametrize("short", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_processes(whole: Any, tmp_path: Path, packed: bool, short: int) -> None:
    """Two of them, once for all methods: with a micro-batch and a part of one each, or a pack at a time; `short`: the
    memory of one of them is, and all do the step again."""
    environment = {**os.environ, "WORLD_SIZE": "2", "MEETING": str(tmp_path), "PACKED": "1" * packed}
    environment |= {"SHORT": str(short)}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.test_divided_steps"], env={**environment, "RANK": str(rank)}
        )
        for rank in (0, 1)
    ]
    assert [one.wait(timeout=300) for one in both] == [0, 0]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == ALL.keys()
        for name, steps in found.items():
            assert steps["short"] == short
            same(steps, whole[name, packed])


def _together() -> None:
    folder = Path(os.environ["MEETING"])
    ranks = Ranks.join(str(folder))
    assert ranks is not None
    packed = bool(os.environ["PACKED"])
    micro, found = 1 if packed else 3, {}
    for number, (name, method) in enumerate(ALL.items()):  # another place in each: in the first forward, in a backward
        short = Short(1 + 3 * number) if os.environ["SHORT"] == "1" and ranks.rank == 1 else None
        found[name] = learnt(method, micro, packed, ranks, short=short)
    torch.save(found, folder / f"{ranks.rank}.pt")
    ranks.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _together()
