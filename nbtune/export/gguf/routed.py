"""Mixtures whose routers weigh by a sigmoid, with dense layers first or experts that all tokens share."""

from __future__ import annotations

import re
from typing import Any

import torch

from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.single_families import check_every_fourth, check_llama, refuse
from nbtune.export.gguf.tensors import Rows
from nbtune.export.merge import MergedModel
from nbtune.models.gguf_file.mixtures import CHUNK_LLAMA4, UNNORMED_LLAMA4

BIAS = {
    r"model\.layers\.(\d+)\.mlp\.(?:e_score_correction|expert)_bias": r"blk.\1.exp_probs_b.bias",
    r"model\.layers\.(\d+)\.mlp\.gate\.e_score_correction_bias": r"blk.\1.exp_probs_b.bias",
    r"model\.layers\.(\d+)\.mlp\.moe_statics\.e_score_correction_bias": r"blk.\1.exp_probs_b.bias",
    r"model\.layers\.(\d+)\.block_sparse_moe\.e_score_correction_bias": r"blk.\1.exp_probs_b.bias",
}


def check(config: Config) -> None:
    """Refuse what llama.cpp's architectures compute otherwise."""
    check_llama(config)
    refuse(config, int(config.get("n_group", default=1)) > 1, "it chooses groups of experts")
    windowed = "sliding_attention" in (config.get("layer_types") or ())
    refuse(config, windowed, "some layers see a window of the text")


def check_dots(config: Config) -> None:
    check(config)
    refuse(config, config.kv_heads != config.heads, "several queries share a key")


def check_glm4_moe(config: Config) -> None:
    check(config)
    refuse(config, not config.get("norm_topk_prob", default=True), "norm_topk_prob is off")


def check_ernie_moe(config: Config) -> None:
    check(config)
    refuse(config, bool(config.get("use_bias")), "its linear layers have biases")
    last = config.get("moe_layer_end_index", default=-1)
    refuse(config, last not in (-1, config.layers - 1), "its last layers are dense")


def metadata(config: Config, writer: Any) -> None:
    """Write how experts are chosen, and which layers have none."""
    from gguf import ExpertGatingFuncType

    writer.add_leading_dense_block_count(int(config.get("first_k_dense_replace", default=0)))
    writer.add_expert_feed_forward_length(int(config.need("moe_intermediate_size")))
    writer.add_expert_shared_count(int(config.get("n_shared_experts", default=0)))
    writer.add_expert_weights_scale(float(config.get("routed_scaling_factor", default=1.0)))
    writer.add_expert_weights_norm(bool(config.get("norm_topk_prob", default=True)))
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def ernie_moe(config: Config, writer: Any) -> None:
    width, shared = int(config.need("moe_intermediate_size")), int(config.get("moe_num_shared_experts", default=0))
    writer.add_expert_feed_forward_length(width)
    writer.add_interleave_moe_layer_step(int(config.get("moe_layer_interval", default=1)))
    writer.add_leading_dense_block_count(int(config.get("moe_layer_start_index", default=1)))
    writer.add_expert_shared_count(shared)
    if shared:
        writer.add_expert_shared_feed_forward_length(width * shared)


def minimax(config: Config, writer: Any) -> None:
    from gguf import ExpertGatingFuncType

    writer.add_expert_feed_forward_length(int(config.need("intermediate_size")))
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def hunyuan(config: Config, writer: Any) -> None:
    """Write how wide HunYuan's experts are, and what all tokens share: as wide as one."""
    writer.add_expert_feed_forward_length(int(config.need("intermediate_size")))
    writer.add_expert_shared_feed_forward_length(int(config.need("intermediate_size")))
    writer.add_expert_shared_count(1)


def _check_windowed(config: Config) -> None:
    """Refuse mixtures with windows that llama.cpp runs otherwise."""
    check_llama(config)
    check_every_fourth(config)
    refuse(config, int(config.get("n_group", default=1)) > 1, "it chooses groups of experts")
    refuse(config, bool(config.get("attention_bias")), "its attention has biases")


def check_afmoe(config: Config) -> None:
    _check_windowed(config)
    refuse(config, not config.get("mup_enabled"), "its embeddings are not multiplied by the root of their width")


def check_exaone_moe(config: Config) -> None:
    _check_windowed(config)
    kinds = config.get("mlp_layer_types", default=["sparse"])
    dense = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    refuse(config, "dense" in kinds[dense:], "its dense layers are not the first ones")


def afmoe(config: Config, writer: Any) -> None:
    _sigmoid(config, writer, int(config.get("num_dense_layers", default=0)), "route_scale")
    writer.add_expert_weights_norm(True)


def exaone_moe(config: Config, writer: Any) -> None:
    kinds = config.get("mlp_layer_types", default=())
    first = kinds.index("sparse") if "sparse" in kinds else int(config.get("first_k_dense_replace", default=0))
    _sigmoid(config, writer, first, "routed_scaling_factor")
    writer.add_expert_weights_norm(bool(config.get("norm_topk_prob", default=True)))
    width = int(config.need("moe_intermediate_size"))
    writer.add_expert_shared_feed_forward_length(width * int(config.get("num_shared_experts", default=1)))


def _sigmoid(config: Config, writer: Any, dense: int, scale: str) -> None:
    from gguf import ExpertGatingFuncType

    writer.add_sliding_window(int(config.need("sliding_window")))
    writer.add_leading_dense_block_count(dense)
    writer.add_expert_feed_forward_length(int(config.need("moe_intermediate_size")))
    writer.add_expert_shared_count(int(config.get("num_shared_experts", default=0)))
    writer.add_expert_weights_scale(float(config.get(scale, default=1.0)))
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def check_llama4(config: Config) -> None:
    """Refuse what llama.cpp's Llama 4 computes otherwise; chunks and growth, only where a text can be so long."""
    check_llama(config)
    refuse(config, bool(config.get("attention_bias")), "its attention has biases")
    refuse(config, not config.get("num_local_experts"), "it has no experts")
    refuse(config, config.layers < 4, "no layer sees all of the text")
    usual = [int((i + 1) % 4 != 0) for i in range(config.layers)]
    turned = list(config.get("no_rope_layers") or usual)[: config.layers]
    refuse(config, [int(bool(one)) for one in turned] != usual, "its layers without rotary are not every fourth")
    normed = config.same("num_local_experts") != UNNORMED_LLAMA4
    odd = bool(config.get("use_qk_norm", default=True)) != normed
    refuse(config, odd, "its queries and keys are not normed as theirs")
    every = _experts_every(config)
    refuse(config, _sparse(config) != list(range(every - 1, config.layers, every)), "experts come in no regular order")
    chunk, floor = config.get("attention_chunk_size"), int(config.get("floor_scale", default=CHUNK_LLAMA4))
    kinds = ["chunked_attention" if one else "full_attention" for one in usual]
    odd = chunk != CHUNK_LLAMA4 or list(config.get("layer_types", default=kinds)) != kinds
    too_long = config.context > min(chunk or CHUNK_LLAMA4, CHUNK_LLAMA4)
    refuse(config, odd and too_long, f"its chunks of text are not of {CHUNK_LLAMA4}")
    scale = float(config.get("attn_scale", default=0.1)) if config.get("attn_temperature_tuning", default=True) else 0.0
    odd = (floor, scale) != (CHUNK_LLAMA4, 0.1)
    refuse(config, odd and config.context >= min(floor, CHUNK_LLAMA4), "far tokens' queries grow otherwise")


def _sparse(config: Config) -> list[int]:
    step = int(config.get("interleave_moe_layer_step", default=1))
    return list(config.get("moe_layers", default=range(step - 1, config.layers, step)))


def _experts_every(config: Config) -> int:
    """Return every how many layers one has experts."""
    return min(_sparse(config), default=config.layers) + 1


def llama4(config: Config, writer: Any) -> None:
    writer.add_expert_feed_forward_length(int(config.need("intermediate_size")))
    writer.add_interleave_moe_layer_step(_experts_every(config))


def width_llama4(config: Config, _: MergedModel) -> int:
    """Return how wide its MLPs without experts are."""
    return int(config.need("intermediate_size_mlp"))


def check_dbrx(config: Config) -> None:
    """Refuse what llama.cpp's DBRX computes otherwise."""
    act = (config.get("ffn_act_fn", default={}) or {}).get("name", "silu")
    refuse(config, act != "silu", f"the activation is {act!r}")
    refuse(config, config.raw.get("moe_normalize_expert_weights", 1.0) != 1.0, "its experts' weights are not made one")


def dbrx(config: Config, writer: Any) -> None:
    """Write at what queries, keys and values are cut: at nothing where that is 0."""
    writer.add_clamp_kqv(float((config.get("attn_config", default={}) or {}).get("clip_qkv") or 0.0))


def parts_dbrx(model: MergedModel, config: Config, source: str) -> dict[str, Rows] | None:
    """Return a layer's experts, which lie one under the other, as a stack; those that lead out lie turned."""
    found = re.fullmatch(r"transformer\.blocks\.(\d+)\.ffn\.experts\.mlp\.(w1|v1|w2)", source)
    if not found:
        return None
    experts, last = config.same("moe_num_experts"), found[2] == "w2"

    def stack(weight: torch.Tensor) -> torch.Tensor:
        each = weight.reshape(experts, -1, weight.shape[-1])
        return each.transpose(1, 2).contiguous() if last else each

    kind = {"w1": "gate", "v1": "up", "w2": "down"}[found[2]]
    return {f"blk.{found[1]}.ffn_{kind}_exps.weight": stack}
