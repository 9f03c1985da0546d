"""Memory that is short in the middle of a run: the same step again with fewer rows at once, and the same losses."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nbtune
from nbtune import events, models
from nbtune.errors import NbtuneError
from nbtune.store.event_log import EventReader

ROWS = [{"prompt": f"Say {n}", "completion": "Ahoy! " * (1 + n % 4)} for n in range(24)]
PAIRS = [{"prompt": f"Say {n}", "chosen": "Ahoy! " * (1 + n % 3), "rejected": "No. " * (1 + n % 2)} for n in range(24)]
JUDGED = [{"prompt": f"Say {n}", "completion": "Ahoy! " * (1 + n % 3), "label": n % 3 > 0} for n in range(24)]
FIELDS: dict[str, Any] = {
    "steps": 4,
    "learning_rate": 1e-3,
    "batch_size": 8,
    "device": "cpu",
    "checkpoint": {"every": 2},
}


class Short:
    """Says that there is no memory, at the given calls of hooks all over a model: in forwards, and amid backwards."""

    def __init__(self, at: set[int], kind: Callable[[], BaseException]) -> None:
        self.at, self.kind, self.calls = at, kind, 0
        self.seen: list[int] = []  # what each call was given: a gradient, or a module and its inputs

    def __call__(self, *given: Any) -> None:
        self.calls += 1
        self.seen.append(len(given))
        if self.calls in self.at:
            raise self.kind()

    def watch(self, model: torch.nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) or type(module).__name__.endswith("RMSNorm"):
                module.register_forward_pre_hook(self)


KINDS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError,
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that trains with an error at the given calls, and returns the run and its hooks."""
    build, counter = models.build, iter(range(99))

    def train(at: set[int], kind: Callable[[], BaseException] = MemoryError, **fields: Any) -> tuple[Any, Short]:
        short = Short(at, kind)

        def built(*args: Any, **options: Any) -> Any:
            made = build(*args, **options)
            short.watch(made.model)
            return made

        monkeypatch.setattr(models, "build", built)
        run = nbtune.finetune({**FIELDS, **fields}, name=f"short-{next(counter)}", runs_dir=tmp_path)
        with contextlib.suppress(NbtuneError):  # the run keeps it
            run.wait()
        return run, short

    return train


def said(run: Any, kind: type) -> list[Any]:
    return [event for event in EventReader(run.folder / "events.jsonl").read() if isinstance(event, kind)]


def steps(run: Any) -> list[tuple[int, float, int]]:
    assert run.state == "finished", run.error
    return [(event.step, event.loss, event.trained_tokens) for event in said(run, events.Step)]


def same(run: Any, whole: Any) -> None:
    assert [(n, tokens) for n, _, tokens in steps(run)] == [(n, tokens) for n, _, tokens in steps(whole)]
    mine, its = ([loss for _, loss, _ in steps(one)] for one in (run, whole))
    assert mine == pytest.approx(its, rel=1e-6, abs=1e-6)


CASES: dict[str, dict[str, Any]] = {
    "sft": {"data": ROWS},
    "stock": {"data": ROWS, "accelerate": False},
    "dpo": {"data": PAIRS, "method": "dpo"},
    "kto": {"data": JUDGED, "method": "kto"},
    "packed": {"data": ROWS, "packing": True, "sequence_len": 32, "batch_size": 4},
    "full": {"data": ROWS, "adapter": "full", "optim": "adafactor"},
}


@pytest.mark.parametrize(
    "case", [name if name == "kto" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_wherever_memory_is_short_the_losses_are_those_of_a_run_that_had_enough(
    trained: Callable[..., Any], case: str
) -> None:
    whole, unharmed = trained(set(), **CASES[case])
    draw = random.Random(case)
    for kind in KINDS if case == "sft" else KINDS[:1]:
        first = draw.randint(unharmed.calls // 4, unharmed.calls)
        run, short = trained({first}, kind, **CASES[case])
        assert short.calls > first
        same(run, whole)
        (warning,) = [w for w in said(run, events.Warning) if "memory was short" in w.message]
        assert "a step has the same rows" in warning.message
        assert run.plan.micro_batch_size * run.plan.gradient_accumulation_steps == whole.plan.micro_batch_size
        assert run.plan.micro_batch_size == whole.plan.micro_batch_size // 2


@pytest.mark.slow
def test_when_one_row_is_too_much_less_is_kept_and_then_one_sentence_ends_it(trained: Callable[..., Any]) -> None:
    """8, 4, 2 and 1 rows; kept, selective, computed again: there is no fourth policy on a CPU."""
    whole, unharmed = trained(set(), data=ROWS, eval={"split": 0})
    at = unharmed.calls // 2
    run, _ = trained({at + n for n in range(5)}, data=ROWS, eval={"split": 0})
    same(run, whole)
    assert (run.plan.micro_batch_size, run.plan.activations) == (1, "recompute")
    ended, _ = trained({at + n for n in range(6)}, data=ROWS, eval={"split": 0})
    assert ended.state == "failed"
    assert isinstance(ended.error, NbtuneError)
    assert "not for one row of up to" in ended.error.cause
    assert "\n" not in ended.error.cause


def test_what_is_asked_of_the_weights_before_they_are_kept_is_asked_again_with_less(
    trained: Callable[..., Any],
) -> None:
    """The last calls of a run are those of its last checkpoint, which a step's memory (what was recorded) is beside."""
    whole, unharmed = trained(set(), data=ROWS, eval={"split": 0})
    run, _ = trained({unharmed.calls}, data=ROWS, eval={"split": 0})
    same(run, whole)
    (warning,) = [w for w in said(run, events.Warning) if "memory was short" in w.message]
    assert "in what follows step 4" in warning.message
    assert [event.step for event in said(run, events.Checkpoint)] == [2, 4]
    assert run.plan.micro_batch_size == whole.plan.micro_batch_size // 2


def test_a_model_that_finds_no_memory_is_planned_anew_once(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another program has come since the plan was made; where memory is short again, the run ends."""
    whole, _ = trained(set(), data=ROWS, eval={"split": 0})
    build = models.build

    def tried(times: int) -> Any:
        left = iter(range(times))

        def built(*args: Any, **options: Any) -> Any:
            if next(left, None) is not None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return build(*args, **options)

        monkeypatch.setattr(models, "build", built)
        fields = {**FIELDS, "data": ROWS, "eval": {"split": 0}}
        run = nbtune.finetune(fields, name=f"built-{times}", runs_dir=tmp_path)
        with contextlib.suppress(NbtuneError):
            run.wait()
        return run

    run = tried(1)
    same(run, whole)
    assert any("planned anew" in warning.message for warning in said(run, events.Warning))
    ended = tried(2)
    assert ended.state == "failed"
    assert "not enough memory after all" in ended.error.cause


def test_answers_that_find_no_memory_are_left_out(trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from nbtune.generate import sampling

    def short(*_: Any, **__: Any) -> str:
        raise MemoryError

    monkeypatch.setattr(sampling, "marked_answer", short)
    run, _ = trained(set(), data=ROWS, samples=["Say 1"], steps=2)
    assert len(steps(run)) == 2
    assert any("no memory for sample answers" in warning.message for warning in said(run, events.Warning))


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_the_smaller_micro_batch_and_the_same_steps(trained: Callable[..., Any]) -> None:
    whole, unharmed = trained(set(), data=ROWS, batch_size=6, checkpoint={"every": 2})
    run, _ = trained({unharmed.calls // 3}, data=ROWS, batch_size=6, checkpoint={"every": 2})
    same(run, whole)
    assert run.plan.micro_batch_size == 3
    again = run.resume(step=2).wait()
    assert [loss for _, loss, _ in steps(again)][-2:] == pytest.approx([x for _, x, _ in steps(whole)][-2:], rel=1e-6)


def test_an_optimizer_without_memory_for_its_state_takes_the_step_again(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is half made when memory is short: nothing of it may stay."""
    whole, _ = trained(set(), data=ROWS)
    zeros, made = torch.zeros_like, []

    def short(like: torch.Tensor, **options: Any) -> torch.Tensor:
        if options.get("memory_format") is torch.preserve_format:
            made.append(like)
            if len(made) == 9:
                raise MemoryError
        return zeros(like, **options)

    monkeypatch.setattr(torch, "zeros_like", short)
    run, _ = trained(set(), data=ROWS)
    assert len(made) > 9
    same(run, whole)
    assert run.plan.micro_batch_size == 4


@pytest.mark.slow
def test_an_update_that_was_broken_off_in_its_middle_is_never_done_twice(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = torch.optim.AdamW.step, []

    def torn(optimizer: Any, closure: Any = None) -> Any:
        done.append(optimizer)
        result = step(optimizer, closure)
        if len(done) == 3:
            raise MemoryError
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", torn)
    run, _ = trained(set(), data=ROWS)
    assert run.state == "failed"
    assert "in the middle of an update" in run.error.cause
    assert len(done) == 3


def test_weights_that_are_updated_in_backward_are_not_updated_twice(trained: Callable[..., Any]) -> None:
    """In a forward nothing has changed yet: the step is done again. In the backward some weights have."""
    turned: dict[str, Any] = {"adapter": "full", "optim_args": {"in_backward": True}, "max_grad_norm": 0, "steps": 2}
    whole, unharmed = trained(set(), data=ROWS, **turned)
    amid_backward = max(n for n, given in enumerate(unharmed.seen, 1) if given == 1)
    ended, _ = trained({amid_backward}, data=ROWS, **turned)
    assert ended.state == "failed"
    assert "memory was short in the middle of an update" in str(ended.error)
    amid_forward = max(n for n, given in enumerate(unharmed.seen[:amid_backward], 1) if given == 2)
    run, _ = trained({amid_forward}, data=ROWS, **turned)
    same(run, whole)
    assert (run.plan.micro_batch_size, run.plan.activations) == (8, "selective")
