"""DeepSeek V2 and V3, GLM 4.7 Flash, Youtu, MiniCPM 3: attention by latent vectors; dense layers first, shared experts.

Written with each layer's `kv_b` as it is, which llama.cpp runs as the model does.
"""

from __future__ import annotations

import re
from typing import Any

from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.single_families import check_llama, refuse

_LITE = (26, 27)  # layers of the models whose queries have no latent vectors: llama.cpp tells them by that
WITHOUT_LORA = re.compile(r"\.attn_(q|q_a|q_b|kv_a_mqa|kv_b)\.")  # what llama.cpp multiplies without a look at adapters
BIAS = {r"model\.layers\.(\d+)\.mlp\.gate\.e_score_correction_bias": r"blk.\1.exp_probs_b.bias"}


def check_deepseek(config: Config) -> None:
    """Refuse what llama.cpp's architecture computes otherwise."""
    check_llama(config)
    refuse(config, bool(config.get("attention_bias")), "its attention has biases")
    lite = config.get("q_lora_rank") is None
    refuse(config, lite != (config.layers in _LITE), "its queries are not those of the released models of its depth")
    groups, used = int(config.get("n_group", default=1)), int(config.get("topk_group", default=1))
    by_best = config.model_type == "deepseek_v2" and config.get("topk_method") == "group_limited_greedy"
    refuse(config, by_best and used < groups, "it chooses groups of experts by the best one of each")
    refuse(config, config.get("rope_interleave", default=True) is False, "its rotary pairs lie apart")
    kinds = list(config.get("mlp_layer_types", default=()))
    refuse(config, kinds != sorted(kinds), "its dense layers are not the first ones")
    rope = config.rope()
    refuse(config, rope.get("mscale") != rope.get("mscale_all_dim"), "its rotary scaling has two factors")
    kind = rope["rope_type"]
    refuse(config, kind == "linear", "its rotary angles are scaled linearly")
    refuse(config, kind == "yarn" and not rope.get("mscale_all_dim"), "yarn scales its attention's rotary part alone")


def metadata(config: Config, writer: Any) -> None:
    """Write the widths of heads and latent vectors, and how experts are chosen."""
    from gguf import ExpertGatingFuncType

    widths(config, writer)
    routed = bool(config.get("n_routed_experts"))
    dense = config.get("mlp_layer_types", default=()).count("dense")
    first = int(config.get("first_k_dense_replace", default=dense)) if routed else config.layers
    writer.add_leading_dense_block_count(first)
    width = config.need("moe_intermediate_size" if routed else "intermediate_size")
    writer.add_expert_feed_forward_length(int(width))
    writer.add_expert_shared_count(int(config.get("n_shared_experts", default=0)))
    writer.add_expert_weights_scale(float(config.get("routed_scaling_factor", default=1.0)))
    third = config.model_type != "deepseek_v2"
    writer.add_expert_weights_norm(third and bool(config.get("norm_topk_prob", default=True)))
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID if third else ExpertGatingFuncType.SOFTMAX)
    if third and int(config.get("n_group", default=1)) > 1:
        writer.add_expert_group_count(int(config.need("n_group")))
        writer.add_expert_group_used_count(int(config.need("topk_group")))
    if (factor := config.rope().get("mscale_all_dim")) is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * float(factor))


def widths(config: Config, writer: Any) -> None:
    """Write the widths of heads and of latent vectors."""
    rotary = int(config.need("qk_rope_head_dim"))
    writer.add_key_length(int(config.need("qk_nope_head_dim")) + rotary)
    writer.add_value_length(int(config.need("v_head_dim")))
    if config.get("q_lora_rank") is not None:
        writer.add_q_lora_rank(int(config.need("q_lora_rank")))
    writer.add_kv_lora_rank(int(config.need("kv_lora_rank")))


def check_minicpm3(config: Config) -> None:
    """Refuse other factors than the released model's, which llama.cpp's graph has in itself."""
    check_llama(config)
    factors = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}
    odd = [key for key, value in factors.items() if config.get(key, default=value) != value]
    refuse(config, bool(odd), f"its {', '.join(odd)} are not the released model's")
    refuse(config, config.get("q_lora_rank") is None, "its queries have no latent vectors")
    refuse(config, bool(config.get("attention_bias") or config.get("mlp_bias")), "its linear layers have biases")


def is_of_more_layers(config: Config, source: str) -> bool:
    """Return whether a weight belongs to layers behind the last, which predict tokens further ahead."""
    found = re.match(r"model\.layers\.(\d+)\.", source)
    return found is not None and int(found[1]) >= config.layers
