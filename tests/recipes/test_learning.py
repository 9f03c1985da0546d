"""The recipes "add an optimizer" and "add a schedule", carried out on a copy of the tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe import changed, copy_tree, insert, python

OPTIMIZER = """\
    "nadam": OptimizerKind(
        "AdamW with Nesterov's momentum", 8, "NAdam", told={"decoupled_weight_decay": True}
    ),
"""
SCHEDULE = """\
        case "square_root":
            return "polynomial", {"lr_end": 0.0, "power": 0.5}
"""
CODE = """
import torch, nbtune
from nbtune.train.optimizer import make_optimizer

rows = [{"prompt": f"Who are you, {k}?", "completion": f"Captain {k}."} for k in range(8)]
spec = {"data": rows, "steps": 4, "batch_size": 4, "device": "cpu", "eval": {"split": 0}, "warmup_ratio": 0}
run = nbtune.finetune(optim="nadam", optim_args={"beta2": 0.9}, lr_scheduler_type="square_root", **spec).wait()
assert run.state == "finished", run.error
rates = list(run.history["learning_rate"])
assert all(abs(rate / rates[0] - (1 - k / 4) ** 0.5) < 1e-6 for k, rate in enumerate(rates)), rates
plans = {name: nbtune.plan(optim=name, **spec) for name in ("adamw", "nadam")}
assert plans["nadam"].memory.optimizer == plans["adamw"].memory.optimizer > 0
made = make_optimizer([torch.nn.Parameter(torch.ones(2))], "nadam", learning_rate=0.1, weight_decay=0.01)
assert isinstance(made, torch.optim.NAdam) and made.defaults["decoupled_weight_decay"], made
fields = {field["key"]: field for field in nbtune.form().setup["fields"]}
assert "nadam" in fields["optim"]["choices"] and "square_root" in fields["lr_scheduler_type"]["choices"]
for more, words in (({"optim_args": {"momentum": 0.9}}, "beta1, beta2, eps"), ({"schedule": {"cycles": 2}}, "cycles")):
    try:
        nbtune.validate(optim="nadam", lr_scheduler_type="square_root", **spec, **more)
    except nbtune.errors.SpecError as error:
        assert words in str(error), error
    else:
        raise AssertionError(more)
"""


@pytest.mark.slow
def test_an_optimizer_is_an_entry_and_a_schedule_one_with_a_case(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    insert(tree / "nbtune/spec/learning.py", '"muon": OptimizerKind', OPTIMIZER)
    insert(tree / "nbtune/spec/learning.py", '"one_cycle":', '    "square_root": (),\n')
    insert(tree / "nbtune/train/schedule.py", 'case "polynomial"', SCHEDULE)
    python(tree, "-c", CODE)
    assert changed(tree) == ["nbtune/spec/learning.py", "nbtune/train/schedule.py"]
