"""A config is read alike by transformers 4 and 5: what 5 writes by new names also stands there by the older ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from nbtune.export.config_file import with_older_names

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
LAYERED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}


@pytest.mark.parametrize(
    ("kind", "rope", "older"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ("llama", {**LLAMA3, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        (
            "phi",
            {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25},
            {"rope_theta": 2e4, "partial_rotary_factor": 0.25},
        ),
        (
            "gpt_neox",
            {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5},
            {"rotary_emb_base": 2e4, "rotary_pct": 0.5},
        ),
        (
            "gemma3_text",
            LAYERED,
            {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
    ],
)
def test_older_names_stand_beside_and_change_nothing(
    kind: str, rope: dict[str, Any], older: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.for_model(kind, rope_parameters=rope, hidden_size=64, num_attention_heads=4)
    written = config.to_dict()
    made = with_older_names(written)
    assert {key: made.get(key) for key in older} == older
    assert {**made, **written} == made
    assert AutoConfig.for_model(kind, **{k: v for k, v in made.items() if k != "model_type"}).to_dict() == written


def test_a_config_of_transformers_4_stays_as_it_is() -> None:
    for config in ({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3}, {"model_type": "gpt2"}):
        assert with_older_names(config) == config
