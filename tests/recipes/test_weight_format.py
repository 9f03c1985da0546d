"""The recipe "add a format of frozen weights", carried out: an entry, and the file of its layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe import changed, copy_tree, insert, python

LAYERS = '''\
"""A group of linear layers whose frozen weights have 8-bit whole numbers, with a scale for each output row."""

from typing import Any

import torch
from torch import Tensor

from nbtune.models.accelerate.lora_linear import LinearGroup


class Int8Group(LinearGroup):
    """Like `LinearGroup`, of rounded weights, which it keeps decoded."""

    slack = 0.05

    def attach(self, shared: dict[Any, Tensor]) -> None:
        for m in self.members:
            m.base.weight.data = rounded(m.base.weight.detach()).to(self.dtype)
        super().attach(shared)


GROUP = Int8Group


def rounded(weight: Tensor) -> Tensor:
    """Return what layers compute with instead of `weight [out, in]`, fp32."""
    scales = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
    return torch.round(weight.float() / scales) * scales
'''
CODE = """
from pathlib import Path
import torch, nbtune
from safetensors.torch import load_file
from nbtune.models.accelerate.int8_linear import rounded

rows = [{"prompt": f"Who are you, {k}?", "completion": f"Captain {k}."} for k in range(8)]
spec = {"data": rows, "steps": 1, "batch_size": 4, "device": "cpu", "learning_rate": 1e-9, "eval": {"split": 0}}
plan = nbtune.plan(weights="int8", **spec)
assert "8-bit whole numbers" in plan.placed() and plan.memory.weights < nbtune.plan(**spec).memory.weights
run = nbtune.finetune(weights="int8", **spec).wait()
assert run.state == "finished", run.error
run.export.merged("merged")
(base,) = Path(nbtune.models.resolve("nbtune/tiny")).glob("*.safetensors")
base, merged, name = load_file(base), load_file("merged/model.safetensors"), "model.layers.0.self_attn.q_proj.weight"
assert torch.allclose(merged[name].float(), rounded(base[name]), atol=2e-3), "an export rounds as the training did"
assert not torch.allclose(merged[name].float(), base[name].float(), atol=1e-4)
(field,) = [field for field in nbtune.form().setup["fields"] if field["key"] == "weights"]
assert "int8" in field["choices"]
built = nbtune.models.load_trainable("nbtune/tiny", quant="int8", r=2, sequence_len=32, device="cpu").built
assert built.patch.report.taken
"""


@pytest.mark.slow
def test_a_new_format_of_weights_is_an_entry_and_the_file_of_its_layers(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    entries = tree / "nbtune/spec/placement.py"
    text = entries.read_text(encoding="utf-8")
    entries.write_text(text.replace('"nf4"]', '"nf4", "int8"]').replace('"nf4", "str', '"nf4", "int8", "str'), "utf-8")
    insert(entries, '"nf4": WeightFormat', '    "int8": WeightFormat(8, 1.0, "8-bit whole numbers", "layer"),\n')
    (tree / "nbtune/models/accelerate/int8_linear.py").write_text(LAYERS, encoding="utf-8")
    python(tree, "-c", CODE)
    assert changed(tree) == ["nbtune/models/accelerate/int8_linear.py", "nbtune/spec/placement.py"]
