"""Rotary scaling: what llama.cpp has to be told, in metadata or as a tensor of factors."""

from __future__ import annotations

import math
from typing import Any

import torch

from nbtune.errors import ExportError
from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.tensors import GgufTensor, constant

_PROPORTIONAL = "proportional"
_PER_FREQUENCY = ("llama3", "longrope", "su", _PROPORTIONAL)
_STILL = 1e30  # by which the frequency of what is not turned is divided
_SCALES_NONE = "llama_4_scaling_beta"  # of Ministral 3: llama.cpp's graph takes the factor on attention away again


def rope_metadata(config: Config, writer: Any) -> None:
    """Write the base frequency and the scaling's parameters.

    Raises:
        ExportError: a scaling that llama.cpp has no equal for.
    """
    from gguf import RopeScalingType

    rope = config.rope()
    kind = rope["rope_type"]
    writer.add_rope_freq_base(_base(config, rope))
    if kind in ("default", "llama3", "dynamic", _PROPORTIONAL):  # which is the default up to the end of the context
        return
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        _yarn(config, rope, writer)
    elif kind in ("longrope", "su"):
        writer.add_rope_scaling_orig_ctx_len(_original(config, rope))
        writer.add_rope_scaling_attn_factors(_longrope_attention(config, rope))
    else:
        raise ExportError(
            f"rotary scaling {kind!r} has no equal in llama.cpp",
            place=config.place,
            fix="export the merged safetensors instead.",
        )


def _base(config: Config, rope: dict[str, Any]) -> float:
    """Return the base frequency; HunYuan's dynamic scaling has a factor on it once and for all."""
    base, alpha, dim = float(rope["rope_theta"]), float(rope.get("alpha") or 0.0), config.rotary_dim
    own = rope["rope_type"] == "dynamic" and config.model_type.startswith("hunyuan")
    return base * alpha ** (dim / (dim - 2)) if own and alpha else base


def _yarn(config: Config, rope: dict[str, Any], writer: Any) -> None:
    """Write yarn's numbers (https://arxiv.org/abs/2309.00071)."""
    from gguf import RopeScalingType

    factor = float(rope["factor"])
    attention, usual = _yarn_attention(rope, factor), _mscale(factor)
    elsewhere = bool(config.get("kv_lora_rank")) or (_SCALES_NONE in rope and attention == 1.0)  # the family writes it
    odd = [key for key, value in {"beta_fast": 32, "beta_slow": 1}.items() if rope.get(key) not in (None, value)]
    if rope.get("attention_factor") is not None and (config.get("kv_lora_rank") or _SCALES_NONE in rope):
        odd.append("attention_factor")
    elif attention != usual and not elsewhere and (_SCALES_NONE in rope or config.model_type.startswith("gemma3")):
        odd.append("factor on attention")  # of Gemma 3's layers llama.cpp would scale the local ones, too
    if rope.get("truncate") is False and config.model_type != "gpt_oss":  # of which a note speaks
        odd.append("truncate")
    if odd:
        raise ExportError(
            f"{config.model_type}: llama.cpp runs no yarn scaling with its own {', '.join(odd)}",
            place=config.place,
            fix="export the merged safetensors instead.",
        )
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(int(rope.get("original_max_position_embeddings") or config.context))
    if attention != usual and not elsewhere:
        writer.add_rope_scaling_attn_factors(attention / usual)  # llama.cpp has the usual one by itself


def _yarn_attention(rope: dict[str, Any], factor: float) -> float:
    """Return by what yarn scales the angles' sines and cosines."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _mscale(factor, float(rope["mscale"])) / _mscale(factor, float(rope["mscale_all_dim"]))
    return _mscale(factor)


def _mscale(factor: float, times: float = 1.0) -> float:
    return 0.1 * times * math.log(factor) + 1.0 if factor > 1 else 1.0


def _original(config: Config, rope: dict[str, Any]) -> int:
    return int(
        config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or config.context
    )


def _longrope_attention(config: Config, rope: dict[str, Any]) -> float:
    """Return LongRoPE's factor on attention (https://arxiv.org/abs/2402.13753): √(1 + ln s / ln L)."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = _original(config, rope)
    scale = rope.get("factor") or config.context / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def rope_tensors(config: Config, read: str) -> list[GgufTensor]:
    """Return the factors by which llama.cpp divides the rotary frequencies, where the scaling is per frequency.

    Args:
        read: which of these scalings the architecture reads.

    Raises:
        ExportError: it does not read the model's.
    """
    rope = config.rope()
    if rope["rope_type"] in _PER_FREQUENCY and rope["rope_type"].replace("su", "longrope") != read:
        raise ExportError(
            f"{config.model_type}: llama.cpp does not read the factors of its rotary scaling ({rope['rope_type']!r})",
            place=config.place,
            fix="export the merged safetensors instead.",
        )
    if read == _PROPORTIONAL:
        return [constant("rope_freqs.weight", _proportional_factors(rope, config.rotary_dim))]
    if rope["rope_type"] == "llama3":
        return [constant("rope_freqs.weight", _llama3_factors(rope, config.rotary_dim))]
    if rope["rope_type"] in ("longrope", "su"):
        return [
            constant("rope_factors_long.weight", torch.tensor(rope["long_factor"])),
            constant("rope_factors_short.weight", torch.tensor(rope["short_factor"])),
        ]
    return []


def _proportional_factors(rope: dict[str, Any], dim: int) -> torch.Tensor:
    """Return the divisors of Gemma 4's rotary angles: the first part of the frequencies turns, the rest stands still
    (dim/2,)."""
    turned = int(float(rope.get("partial_rotary_factor", 1.0)) * dim // 2)
    factors = torch.full((dim // 2,), _STILL)
    factors[:turned] = float(rope.get("factor", 1.0))
    return factors


def _llama3_factors(rope: dict[str, Any], dim: int) -> torch.Tensor:
    """Return the divisors of Llama 3.1's scaling: long waves are slowed by `factor`, short ones kept, those between
    blended (dim/2,)."""
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    waves = 2 * math.pi * float(rope["rope_theta"]) ** exponents
    blend = ((original / waves - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - blend) / factor + blend)
