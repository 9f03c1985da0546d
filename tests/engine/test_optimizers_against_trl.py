"""Each optimizer and schedule beside transformers' own, in TRL's trainer: fifty steps through `nbtune.finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.test_against_trl import Trained, ours, rows, theirs

STEPS, RATE, RANK = 50, 2e-4, 32  # 8-bit state is for tensors from 4,096 numbers on: r = 32 makes such
OURS: dict[str, Any] = {
    "steps": STEPS, "micro_batch_size": 2, "gradient_accumulation_steps": 1, "max_grad_norm": 1.0, "warmup_ratio": 0.1,
    "adapter": {"type": "lora", "r": RANK}, "learning_rate": RATE, "accelerate": False,
}  # fmt: skip
THEIRS: dict[str, Any] = {
    "max_steps": STEPS, "max_grad_norm": 1.0, "warmup_steps": 0.1, "lora": {"r": RANK, "lora_alpha": RANK},
    "completion_only_loss": True, "pad_to_multiple_of": 8, "learning_rate": RATE,
}  # fmt: skip


def same(found: Trained, truth: Trained, *, muon: bool) -> None:
    """Losses, and weights in parts of how far they may have gone; Muon orthogonalises in bf16, where rounding tells."""
    (losses, adapter), (expected, weights) = found, truth
    assert len(losses) == len(expected) == STEPS
    assert losses == pytest.approx(expected, rel=1e-4)
    assert adapter.keys() == weights.keys()
    off = torch.cat([(adapter[name] - value).abs().flatten() for name, value in weights.items()])
    assert float(off.mean()) < (1e-3 if muon else 1e-4) * STEPS * RATE


def muon(model: Any) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Muon(trained, lr=RATE, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")


def loraplus(model: Any) -> torch.optim.Optimizer:
    from peft.optimizers import create_loraplus_optimizer

    return create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16, loraplus_weight_decay=0.1, weight_decay=0.1
    )


_SLOW = pytest.mark.slow
OPTIMIZERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "betas": ({"optim_args": {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6}},
              {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}),
    "adamw_8bit": ({"optim": "adamw_8bit"}, {"optim": "adamw_bnb_8bit"}),
    "adafactor": ({"optim": "adafactor"}, {"optim": "adafactor"}),
    "lion": ({"optim": "lion", "optim_args": {"beta1": 0.9, "beta2": 0.99}, "learning_rate": 3e-5},
             {"optim": "lion_32bit", "adam_beta1": 0.9, "adam_beta2": 0.99, "learning_rate": 3e-5}),
    "lion_8bit": ({"optim": "lion_8bit", "optim_args": {"beta2": 0.999}, "learning_rate": 3e-5},
                  {"optim": "lion_8bit", "learning_rate": 3e-5}),
    "muon": ({"optim": "muon", "optim_args": {"momentum": 0.9}}, {"optimizer": muon}),
    "lora-plus": ({"optim_args": {"lora_b_rate": 16}}, {"optimizer": loraplus}),
}  # fmt: skip
SCHEDULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cosine-floor": ({"lr_scheduler_type": "cosine", "schedule": {"floor": 0.1}},
                     {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}),
    "wsd": ({"lr_scheduler_type": "wsd",
             "schedule": {"decay": "1-sqrt", "decay_share": 0.2, "floor": 0.05, "warmup_steps": 7}},
            {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 7,
             "lr_scheduler_kwargs": {"num_decay_steps": 10, "decay_type": "1-sqrt", "min_lr_ratio": 0.05}}),
    "polynomial": ({"lr_scheduler_type": "polynomial", "schedule": {"power": 2, "floor": 0.2}},
                   {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2, "lr_end": 0.2 * RATE}}),
    "inverse-sqrt": ({"lr_scheduler_type": "inverse_sqrt"}, {"lr_scheduler_type": "inverse_sqrt"}),
    "restarts": ({"lr_scheduler_type": "cosine_with_restarts", "schedule": {"cycles": 3}},
                 {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}}),
}  # fmt: skip
TOGETHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "muon and wsd": (OPTIMIZERS["muon"][0] | SCHEDULES["wsd"][0], OPTIMIZERS["muon"][1] | SCHEDULES["wsd"][1]),
}  # in `make test`, for all of them


@pytest.mark.filterwarnings("ignore")  # trl's and transformers' own deprecations are not ours to mend
@pytest.mark.parametrize(
    ("mine", "library"),
    [
        pytest.param(*both, id=name, marks=[] if name in TOGETHER else [_SLOW])
        for name, both in {**OPTIMIZERS, **SCHEDULES, **TOGETHER}.items()
    ],
)
def test_fifty_steps_are_the_librarys(tmp_path: Path, mine: dict[str, Any], library: dict[str, Any]) -> None:
    given = rows(2 * STEPS)
    found = ours(tmp_path, given, **{**OURS, **mine})
    truth = theirs(tmp_path, "SFT", given, 2, 1, **{**THEIRS, **library})
    same(found, truth, muon=mine.get("optim") == "muon")
