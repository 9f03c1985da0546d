"""What is written into adapter_config.json: the same adapter when it is read, also by an older peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer

from nbtune.export import ExportSource, combine_adapters, export_adapter
from nbtune.export.peft_adapter import AdapterFile
from nbtune.models import build, load_model, save_adapter
from nbtune.models.adapter_file import chosen
from nbtune.spec import AdapterSpec

PEFT_0_11 = (  # the fields of its LoraConfig and IA3Config; before 0.14 another one was a TypeError, later a warning
    "peft_type auto_mapping base_model_name_or_path revision task_type inference_mode r target_modules lora_alpha "
    "lora_dropout fan_in_fan_out bias use_rslora modules_to_save init_lora_weights layers_to_transform layers_pattern "
    "rank_pattern alpha_pattern megatron_config megatron_core loftq_config use_dora layer_replication "
    "feedforward_modules init_ia3_weights"
)
KNOWN = set(PEFT_0_11.split())
KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "lora": ({}, set()),
    "dora": ({"type": "dora"}, set()),
    "ia3": ({"type": "ia3"}, set()),
    "ranks": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True}, set()),
    "layers": ({"layers_to_transform": [1]}, set()),
    "whole modules": ({"modules_to_save": ["input_layernorm"]}, set()),
    "tokens": ({"trainable_token_indices": [7, 9]}, {"trainable_token_indices"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_was_chosen_and_what_every_peft_knows(kind: str, tmp_path: Path) -> None:
    options, newer = KINDS[kind]
    model = build("nbtune/tiny", adapter=AdapterSpec(**options), dtype=torch.float32, device="cpu").model
    save_adapter(model, tmp_path / "saved", base="owner/base")
    export_adapter(ExportSource(tmp_path, tmp_path / "saved", base_id="owner/base"), tmp_path / "out")
    for folder in ("saved", "out"):
        written = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        assert set(written) - KNOWN - newer == set()
        read = PeftConfig.from_pretrained(str(tmp_path / folder)).to_dict()
        trained = model.peft_config["default"].to_dict()
        changed = {"base_model_name_or_path": "owner/base", "inference_mode": True}
        assert {k: _plain(v) for k, v in read.items()} == {k: _plain(v) for k, v in {**trained, **changed}.items()}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, list, tuple)) else value


def test_adapters_that_others_wrote_lose_what_nobody_chose(tmp_path: Path) -> None:
    model = build("nbtune/tiny", adapter=AdapterSpec(r=4), dtype=torch.float32, device="cpu").model
    for name in ("ours", "theirs"):
        save_adapter(model, tmp_path / name, base="owner/base")
    file = tmp_path / "theirs" / "adapter_config.json"
    theirs = model.peft_config["default"].to_dict()
    theirs |= {
        "base_model_name_or_path": "owner/base",
        "target_modules": sorted(theirs["target_modules"]),
        "peft_type": "LORA",
        "of_tomorrow": None,
    }
    file.write_text(json.dumps(theirs, default=str))
    export_adapter(ExportSource(tmp_path, tmp_path / "theirs", base_id="owner/base"), tmp_path / "out")
    combine_adapters([tmp_path / "theirs", tmp_path / "ours"], out=tmp_path / "both")
    for name in ("out", "both"):
        assert set(json.loads((tmp_path / name / "adapter_config.json").read_text())) <= KNOWN


def test_an_option_of_a_later_peft_stays_where_it_is_one() -> None:
    assert chosen({"peft_type": "LORA", "of_tomorrow": 3, "lora_bias": True, "use_qalora": False}) == {
        "peft_type": "LORA",
        "of_tomorrow": 3,
        "lora_bias": True,
    }
    assert chosen({"peft_type": ["no name"], "r": 8, "x": {}}) == {"peft_type": ["no name"], "r": 8}


def test_of_two_patterns_for_a_layer_the_first_counts_wherever_it_is_opened(tmp_path: Path) -> None:
    """It did in training; sorted, another one would be the first, and the adapter would count 16 times as much."""
    patterns = {"self_attn.q_proj": 2.0, "q_proj": 32.0}
    adapter = AdapterSpec(r=4, alpha_pattern=patterns, target_modules=("q_proj",))
    model = build("nbtune/tiny", adapter=adapter, dtype=torch.float32, device="cpu").model
    save_adapter(model, tmp_path / "saved", base="owner/base")
    export_adapter(ExportSource(tmp_path, tmp_path / "saved", base_id="owner/base"), tmp_path / "out")
    opened: list[Any] = [model]
    for folder in (tmp_path / "saved", tmp_path / "out"):
        assert [*json.loads((folder / "adapter_config.json").read_text())["alpha_pattern"]] == [*patterns]
        assert {target.scale for target in AdapterFile(folder).targets.values()} == {0.5}
        opened.append(PeftModel.from_pretrained(load_model("nbtune/tiny", dtype=torch.float32, device="cpu"), folder))
    for one in opened:
        assert {layer.scaling["default"] for layer in one.modules() if isinstance(layer, LoraLayer)} == {0.5}
