"""Steps of whole answers as they are recorded: the numbers of those that are not, and few shapes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from nbtune.data.batching.sampler import BatchPlan
from nbtune.methods import METHODS, Answers
from nbtune.models import Built
from nbtune.models.accelerate import apply
from nbtune.spec import RunSpec
from nbtune.spec.learning import OptimArgs
from nbtune.train import cuda_graph_stepper
from nbtune.train.choose_stepper import choose_stepper
from nbtune.train.cuda_graph_stepper import FusedStepper
from nbtune.train.loss import AnswerLoss, loss_of
from nbtune.train.optimizer import make_optimizer
from nbtune.train.stepper import Stepper
from tests.train.test_against_trl import _model
from tests.train.test_divided_steps import ALL, rows_of

CPU, STEPS = torch.device("cpu"), 2
RECORDED = [name for name, method in ALL.items() if not (method.by_tokens or method.head or method.online)]
CASES = [(name, packing) for name in RECORDED for packing in (False, True)]
FAST = [("dpo", True), ("kto", False), ("bco", True)]


def batches_of(name: str, packing: bool) -> BatchPlan:
    method = ALL[name]
    shape: dict[str, Any] = {"micro_batch_size": 2 if packing else 4, "gradient_accumulation_steps": 2}
    return BatchPlan(
        rows_of(method), **shape, per_step=8, together=method.group, mismatch=method.mismatched, seed=1,
        packing=packing, sequence_len=96,
    )  # fmt: skip


def built() -> Built:
    model = _model()
    patch = apply(model)
    assert "head" in patch.report.taken
    return Built(model.train(), None, None, patch)  # type: ignore[arg-type]


def steps_of(stepper: Any, loss: Any, batches: BatchPlan) -> list[dict[str, float]]:
    told = []
    for index in range(STEPS):
        step = batches.step(index)
        stepper.look_ahead(iter(step), step=index)
        total = sum(loss.count(batch) for batch in step)
        for number, batch in enumerate(step):
            stepper.accumulate(batch, denominator=total, step=index, micro_step=number)
        updated = stepper.update(1e-3)
        told.append(
            {"loss": float(updated.loss), "norm": float(updated.norm)}
            | {k: float(v) for k, v in updated.figures.items()}
        )
    return told


@pytest.mark.parametrize(
    ("name", "packing"), [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_they_tell_what_other_steps_tell(name: str, packing: bool) -> None:
    loss, one, other = loss_of(ALL[name]), built(), built()
    args: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": 0.0, "args": OptimArgs()}
    parameters = [p for p in one.model.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, "adamw", **args)
    plain = Stepper(one.model, loss, optimizer, max_grad_norm=1.0, seed=1, device=CPU)
    recorded = FusedStepper(other, weight_decay=0.0, max_grad_norm=1.0, device=CPU, loss=loss)  # type: ignore[arg-type]
    truth, found = (steps_of(stepper, loss, batches_of(name, packing)) for stepper in (plain, recorded))
    assert [set(step) for step in found] == [set(step) for step in truth]
    for step, expected in zip(found, truth, strict=True):
        assert step == pytest.approx(expected, rel=2e-4, abs=1e-5, nan_ok=True)


class Recording(TorchFunctionMode):
    """What CUDA refuses while a step is recorded: a tensor of the host's numbers, and a look at the device's."""

    REFUSED = ("tensor", "as_tensor", "new_tensor", "item", "tolist", "cpu", "to", "numpy", "nonzero", "unique",
               "__bool__", "__float__", "__int__", "masked_select")  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in self.REFUSED, f"`{name}` cannot be recorded"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in RECORDED for kind in sorted(ALL[name].loss_types) or [""]]
)
def test_a_loss_asks_nothing_of_the_host(name: str, kind: str, weighted: bool) -> None:
    method, draw = ALL[name], torch.Generator().manual_seed(3)

    def drawn() -> Answers:
        numbers = [-torch.rand(8, generator=draw) for _ in range(2)]
        judged = None if method.pairwise else torch.tensor([1.0, 0.0] * 4)
        return Answers(
            numbers[0].requires_grad_(), torch.full((8,), 5.0), reference=numbers[1] if method.reference else None,
            values=judged, weights=torch.ones(8) if weighted else None,
        )  # fmt: skip

    more = {"mismatched": drawn().detached()} if method.mismatched else {}
    step = replace(drawn().detached(), **more) if method.looks_ahead else None
    options = {option: 0.3 for option, value in method.options.items() if value == 0}  # each part of the loss
    loss = loss_of(method, options={**options, "loss_type": kind} if kind else options)
    assert isinstance(loss, AnswerLoss)
    assert loss.figures is not None  # asked for before anything is recorded
    answers, denominator = replace(drawn(), step=step, **more), torch.tensor(8.0)
    with Recording():
        loss.of_answers(answers, denominator).loss.backward()


def test_packs_with_few_and_with_many_answers_are_of_one_shape() -> None:
    answers = FusedStepper(
        built(), weight_decay=0.0, max_grad_norm=1.0, device=CPU, loss=loss_of(METHODS["dpo"])
    )._answers  # type: ignore[arg-type]
    packs = [batch for index in range(STEPS) for batch in batches_of("dpo", True).step(index)]
    assert len({len(pack.examples) for pack in packs}) > 1
    inputs = [answers.inputs(pack, 4.0, None) for pack in packs]  # type: ignore[union-attr]
    for name in ("answers.count", "answers.made_up", "answers.weights", "cu_seq_lens_q"):
        assert len({getattr(one[name], "shape", one[name]) for one in inputs}) == 1, name


@pytest.mark.parametrize(("name", "kind"), [("dpo", FusedStepper), ("kto", FusedStepper), ("reward", Stepper)])
def test_a_run_on_a_card_goes_by_them(name: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph_stepper, "replayable", lambda device: True)
    plan: Any = SimpleNamespace(
        weights=SimpleNamespace(shards=False), dtype="bf16", learning_rate=1e-5, in_backward=False
    )
    spec = RunSpec(data="rows", method=name)
    assert type(choose_stepper(built(), loss_of(METHODS[name]), spec=spec, plan=plan, device=CPU)) is kind
