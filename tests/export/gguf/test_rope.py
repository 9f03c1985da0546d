"""Rotary scaling as a GGUF file says it is what transformers computes: frequencies, and the factor on attention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.rope import rope_metadata, rope_tensors

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 512}
YARN = {"rope_type": "yarn", "rope_theta": 20000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 20000.0,
    "short_factor": [1.1] * 8,
    "long_factor": [2.0 + i for i in range(8)],
}


def keys_of(config: Any) -> tuple[Config, dict[str, Any]]:
    """What stands in a file of a config: its keys of rotary scaling, without the architecture before them."""
    read, writer = Config(config.to_dict()), GGUFWriter(None, "llama")
    rope_metadata(read, writer)
    found = {name: one.value for part in writer.kv_data for name, one in part.items()}
    return read, {name.removeprefix("llama.rope."): value for name, value in found.items() if ".rope." in name}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"factor": 40.0},
        {"attention_factor": 1.0},
        {"attention_factor": 1.7},
        {"mscale": 1.0, "mscale_all_dim": 0.5},
        {"mscale": 0.707, "mscale_all_dim": 0.707},
    ],
    ids=str,
)
def test_yarns_factor_on_attention_is_transformers(more: dict[str, Any]) -> None:
    """llama.cpp multiplies what the file says by 1 + 0.1 ln(factor)."""
    config = LlamaConfig(**SIZES, rope_parameters={**YARN, **more})
    _, told = keys_of(config)
    _, theirs = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    assert told["scaling.type"] == "yarn"
    assert told["freq_base"] == 20000.0
    assert (told["scaling.factor"], told["scaling.original_context_length"]) == ({**YARN, **more}["factor"], 128)
    usual = 1 + 0.1 * math.log(told["scaling.factor"])
    assert told.get("scaling.attn_factor", 1.0) * usual == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("more", [{}, {"attention_factor": 1.3}])
def test_a_long_ropes_factors_are_transformers(more: dict[str, Any]) -> None:
    rope = {**LONG, **more, "original_max_position_embeddings": 128, "factor": 4.0}
    config = Phi3Config(**SIZES, original_max_position_embeddings=128, rope_parameters=rope, pad_token_id=0)
    read, told = keys_of(config)
    for length, name in ((100, "rope_factors_short.weight"), (300, "rope_factors_long.weight")):
        theirs, attention = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=length)
        (factors,) = (next(one.chunks()) for one in rope_tensors(read, "longrope") if one.name == name)
        ours = 1 / (factors * 20000.0 ** (torch.arange(0, 16, 2) / 16))
        torch.testing.assert_close(ours, theirs)
        assert told["scaling.attn_factor"] == pytest.approx(attention, rel=1e-6)
    assert told["scaling.original_context_length"] == 128
    assert "scaling.type" not in told  # the factors are all


def test_linear_scaling_and_a_base_of_its_own() -> None:
    rope = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}
    _, told = keys_of(LlamaConfig(**SIZES, rope_parameters=rope))
    assert told == {"freq_base": 5000.0, "scaling.type": "linear", "scaling.factor": 3.0}
    _, told = keys_of(LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}))
    assert told == {"freq_base": 5000.0}
