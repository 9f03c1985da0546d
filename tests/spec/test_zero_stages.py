"""DeepSpeed's configs in a spec: the stage is kept, what is not there is refused, and nothing is silently dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbtune.errors import SpecError
from nbtune.spec import from_mapping

AXOLOTL = {  # zero3_bf16.json as people have it
    "zero_optimization": {"stage": 3, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 0,
                          "stage3_gather_16bit_weights_on_model_save": True},
    "bf16": {"enabled": True}, "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
}  # fmt: skip


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("way", ["mapping", "file", "name"])
def test_a_stage_is_kept_however_it_is_given(tmp_path: Path, stage: int, way: str) -> None:
    config: Any = {**AXOLOTL, "zero_optimization": {"stage": stage}}
    if way == "file":
        (tmp_path / "ds.json").write_text(json.dumps(config))
        config = str(tmp_path / "ds.json")
    elif way == "name":
        config = f"deepspeed_configs/zero{stage}.json"
    spec = from_mapping({"data": "rows", "deepspeed": config})
    assert spec.gpus == "all"
    assert spec.weights == ("sharded" if stage == 3 else "auto")
    assert from_mapping({"data": "rows", "deepspeed": config, "gpus": 2}).gpus == 2


def test_on_a_cluster_its_workers_count() -> None:
    spec = from_mapping({"data": "rows", "deepspeed": AXOLOTL, "cluster": {"engine": "ray", "workers": 4}})
    assert (spec.gpus, spec.weights) == (1, "sharded")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("ds.json", "is no file"),
        ({"zero_optimization": {"stage": 4}}, "a number from 0 to 3"),
        ({"zero_optimization": {"stage": True}}, "a number from 0 to 3"),
        ({"zero_optimization": []}, "a number from 0 to 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "`offload_param` to 'cpu'"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, "`offload_optimizer` to 'nvme'"),
    ],
)
def test_what_is_no_stage_is_refused_in_a_sentence(config: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_mapping({"data": "rows", "deepspeed": config})
    assert words in caught.value.cause
    assert caught.value.fix


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "[" * 10**5])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "zero3.json").write_text(text)
    with pytest.raises(SpecError, match="is no JSON of DeepSpeed's"):
        from_mapping({"data": "rows", "deepspeed": str(tmp_path / "zero3.json")})


def test_no_config_is_none() -> None:
    assert from_mapping({"data": "rows", "deepspeed": None}).gpus == 1
