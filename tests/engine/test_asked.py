"""What a spec asks for is what a run does, through `nbtune.finetune` itself: decay, clipping, warm-up, dropout, order.

A learning rate of 1e-12 leaves the weights where they were, so that what a step saved of its gradients can be compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nbtune import events
from nbtune.store import checkpoints
from tests.support.every import every

STILL = 1e-12
TWINS = [{"prompt": "Who is there?", "completion": "Number four, captain, and all hands with him."}] * 2
PAIR = [{"prompt": "Who is there?", "chosen": "Number four, captain.", "rejected": "Nobody."}]
ONE: dict[str, Any] = {"steps": 1, "batch_size": 1, "warmup_ratio": 0, "order": "given"}
Start = Callable[..., Any]


def trained(run: Any) -> torch.Tensor:
    """All weights that the run's last checkpoint holds, in a row."""
    run.wait()
    (folder,) = (run.folder / "checkpoints").glob(f"step-{run.step:08d}")
    weights = load_file(folder / "trainable.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)]).double()


def first_moments(run: Any) -> torch.Tensor:
    """Adam's means of the gradients: after one step a tenth of the (clipped) gradient."""
    run.wait()
    (folder,) = (run.folder / "checkpoints").glob(f"step-{run.step:08d}")
    state = torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    return torch.cat([state[number]["exp_avg"].flatten() for number in sorted(state)]).double()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_weights_decay_as_asked(start: Start) -> None:
    """AdamW takes rate · decay · weight from each weight; Adam's first update moves none by more than the rate."""
    rate, decay = 1e-3, 0.5
    plain = trained(start("plain", learning_rate=rate, **ONE))
    pulled = trained(start("pulled", learning_rate=rate, weight_decay=decay, **ONE))
    before = (plain - pulled) / (rate * decay)
    assert float(before.abs().max()) > 0.05, "the adapter's A does not begin with zeros"
    assert float((plain - before).abs().max()) < 1.05 * rate


@pytest.mark.parametrize("limit", [0.01, 0])
def test_gradients_are_clipped_as_asked(start: Start, limit: float) -> None:
    run = start(max_grad_norm=limit, learning_rate=STILL, **ONE)
    norm = float(10 * first_moments(run).norm())
    whole = float(run.history["grad_norm"].iloc[0])
    assert whole > 0.1
    assert norm == pytest.approx(limit or whole, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "share", "factors"),
    [("linear", 0.3, [0, 1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4]), ("constant_with_warmup", 0.15, [0, 1 / 2] + [1] * 5)],
)
def test_the_rate_rises_and_falls_as_transformers_does(start: Start, kind: str, share: float, factors: list[float]):
    """Of 7 steps 0.3 are 2.1 and 0.15 are 1.05: a step that has begun counts."""
    run = start(lr_scheduler_type=kind, warmup_ratio=share, steps=7, batch_size=1, learning_rate=1e-3).wait()
    assert list(run.history["learning_rate"]) == pytest.approx([1e-3 * factor for factor in factors])


KNOBS: list[dict[str, Any]] = [
    {"optim": "lion"}, {"optim_args": {"beta1": 0.5}}, {"optim_args": {"lora_b_rate": 4}},
    {"schedule": {"floor": 0.5}}, {"loss": {"label_smoothing": 0.2}}, {"loss": {"z_loss": 0.1}},
    {"neftune_noise_alpha": 5},
]  # fmt: skip


def test_each_knob_of_learning_does_something(start: Start) -> None:
    """Three steps with it end elsewhere than without, and than with any other."""
    ended = [trained(start(f"knob-{k}", **{**ONE, "steps": 3}, **knob)) for k, knob in enumerate([{}, *KNOBS])]
    assert every(apart(a, b) > 1e-4 for k, a in enumerate(ended) for b in ended[:k])


def test_each_micro_step_and_each_step_drops_something_else(start: Start) -> None:
    """Of one row again and again: with the same mask all gradients would be the same, and so would be their mean."""
    more = {"rows": TWINS, "adapter": {"type": "lora", "r": 4, "dropout": 0.5}, "learning_rate": STILL}
    once = first_moments(start("once", **{**ONE, **more}))
    both = first_moments(start("both", micro_batch_size=1, **{**ONE, **more, "batch_size": 2}))
    twice = first_moments(start("twice", **{**ONE, **more, "steps": 2}))
    assert apart(both, once) > 0.1
    assert apart(twice / 1.9, once) > 0.1  # 0.9 · 0.1 g + 0.1 g


def test_without_dropout_such_rows_have_one_gradient(start: Start) -> None:
    more = {"rows": TWINS, "learning_rate": STILL, "max_grad_norm": 0}
    once = first_moments(start("once", **{**ONE, **more}))
    both = first_moments(start("both", micro_batch_size=1, **{**ONE, **more, "batch_size": 2}))
    assert apart(both, once) < 1e-5
    assert apart(first_moments(start("twice", **{**ONE, **more, "steps": 2})) / 1.9, once) < 1e-5


def test_the_seed_decides_the_order(start: Start) -> None:
    """Before anything is learnt a row's loss is the base's, whatever the seed has put into the adapter."""
    orders = []
    for seed in (1, 2):
        run = start(f"seed-{seed}", seed=seed, steps=6, batch_size=1, learning_rate=STILL).wait()
        orders.append([round(loss, 4) for loss in run.history["loss"]])
    assert orders[0] != orders[1]


def test_beta_is_the_methods(start: Start) -> None:
    """IPO wants a gap of 1 / 2β; there is none at first."""
    run = start(rows=PAIR, method="ipo", beta=0.25, **ONE).wait()
    assert run.history["loss"].iloc[0] == pytest.approx((1 / (2 * 0.25)) ** 2, rel=1e-4)


def test_what_is_measured_counted_and_kept(start: Start) -> None:
    """Also after the last step, whatever `every` says; the best loss is the lowest so far; two checkpoints stay."""
    fields = {"steps": 5, "learning_rate": 0.05, "warmup_ratio": 0, "checkpoint": {"every": 1, "keep": 2}}
    run = start(eval={"split": 0.2, "every": 2}, **fields).wait()
    evals = [event for event in run.events() if isinstance(event, events.Eval)]
    assert [event.step for event in evals] == [2, 4, 5]
    losses = [event.loss for event in evals]
    assert [event.best for event in evals] == [loss < min([math.inf, *losses[:k]]) for k, loss in enumerate(losses)]
    assert run.saved_steps == [4, 5]
    kept = json.loads((run.folder / "checkpoints/step-00000005/progress.json").read_text(encoding="utf-8"))
    assert kept["best_eval"] == min(losses)
    for counted in ("tokens", "trained_tokens"):
        assert kept[counted] == run.history[counted].sum()
    assert 0 < kept["trained_tokens"] < kept["tokens"]
    (run.folder / "checkpoints/step-00000009").mkdir()  # of a process that was killed
    assert checkpoints.latest(run.folder) == run.folder / "checkpoints/step-00000005"
    assert run.saved_steps == [4, 5]
