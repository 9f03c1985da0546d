"""Families whose layers have states (Mamba's) or short convolutions, and some, or all of them, attention.

What is multiplied on the way through a Falcon-H1 is multiplied into the weights here: llama.cpp's graph has no place
for it.
"""

from __future__ import annotations

from typing import Any

import torch

from nbtune.export.gguf import states
from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.routed import metadata as routed_metadata
from nbtune.export.gguf.single_families import extra_granite, refuse
from nbtune.export.gguf.tensors import GgufTensor, Rows, mapped
from nbtune.export.merge import MergedModel

_ATTENTION = ("attention", "full_attention")
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
NEMOTRON = {
    **states.NAMES,
    r"backbone\.layers\.(\d+)\.mixer\.gate\.e_score_correction_bias": r"blk.\1.exp_probs_b.bias",
}
EXPERT_BIAS = {r"model\.layers\.(\d+)\.feed_forward\.expert_bias": r"blk.\1.exp_probs_b.bias"}


def kinds(config: Config) -> list[str]:
    """Return what each layer is: in transformers' words, old or new."""
    letters = config.get("hybrid_override_pattern")
    if letters is not None:
        return [_LETTERS.get(letter, letter) for letter in letters]
    if (found := config.get("layer_types", "layers_block_type")) is not None:
        return list(found)
    if (every := config.get("attn_layer_period")) is not None:
        offset = int(config.get("attn_layer_offset", default=0))
        return ["attention" if i % int(every) == offset else "mamba" for i in range(config.layers)]
    attending = config.get("attn_layer_indices", "full_attn_idxs", default=())
    return ["attention" if i in attending else "mamba" for i in range(config.layers)]


def attends(config: Config) -> list[int]:
    """Return of each layer how many heads have keys: none where it does not attend."""
    return [config.kv_heads if kind in _ATTENTION else 0 for kind in kinds(config)]


def check(config: Config) -> None:
    """Refuse what no architecture with Mamba's states computes as the model does."""
    refuse(config, config.get("hidden_act", default="silu") != "silu", "the activation is not silu")
    refuse(config, bool(config.get("mamba_proj_bias")), "the projections into its states have biases")
    conv = config.get("mamba_conv_bias", "use_conv_bias", default=True)
    refuse(config, not conv, "its convolution has no bias")
    states.check_limits(config)


def mamba2(config: Config, writer: Any) -> None:
    """Write the sizes of Mamba 2's states."""
    heads = int(config.need("mamba_n_heads", "mamba_num_heads"))
    writer.add_ssm_conv_kernel(int(config.get("mamba_d_conv", "conv_kernel", default=4)))
    writer.add_ssm_inner_size(_inner(config))
    writer.add_ssm_state_size(int(config.need("mamba_d_state", "ssm_state_size")))
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(int(config.get(*states.GROUPS, default=1)))


def _inner(config: Config) -> int:
    """Return how wide the states' inputs are."""
    heads = int(config.need("mamba_n_heads", "mamba_num_heads"))
    width = config.get("mamba_d_head", "mamba_head_dim", default="auto")
    if width == "auto":
        expanded = int(config.get("mamba_expand", "expand", default=2)) * config.hidden
        return int(config.get("mamba_d_ssm", default=expanded))
    return heads * int(width)


def check_falcon_h1(config: Config) -> None:
    check(config)
    normed = bool(config.get("mamba_rms_norm")) and bool(config.get("mamba_norm_before_gate", default=True))
    refuse(config, normed, "it normalises states before their gate")
    refuse(config, bool(config.get("projectors_bias")), "the projections out of its states have biases")
    refuse(config, config.rope()["rope_type"] not in ("default", "linear", "yarn"), "its rotary scaling is its own")


def parts_falcon_h1(model: MergedModel, config: Config, source: str) -> dict[str, Rows] | None:
    """Return a tied head as a weight of its own: both are multiplied, by different numbers."""
    if source != "model.embed_tokens.weight" or "lm_head.weight" in model.names:
        return None
    wide, head = _number(config, "embedding_multiplier"), _number(config, "lm_head_multiplier")
    return {"token_embd.weight": lambda weight: weight * wide, "output.weight": lambda weight: weight * head}


def change_falcon_h1(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Return a weight with what its outputs, or its inputs, are multiplied by."""
    if ".mamba.in_proj." in source:
        scale = _sections(config) * _number(config, "ssm_in_multiplier")
        return mapped(model, source, name, lambda weight: weight * scale[:, None])
    if (factor := _factor(config, source)) != 1.0:
        return mapped(model, source, name, lambda weight: weight * factor)
    return states.change(model, config, source, name)


def _factor(config: Config, source: str) -> float:
    gate, down = config.get("mlp_multipliers", default=(1.0, 1.0))
    within = 1.0 if source.endswith(".bias") else _number(config, "attention_in_multiplier")
    factors = {
        "embed_tokens": _number(config, "embedding_multiplier"),
        "lm_head": _number(config, "lm_head_multiplier"),
        "feed_forward.gate_proj": float(gate),
        "feed_forward.down_proj": float(down),
        "self_attn.q_proj": within,
        "self_attn.k_proj": within * _number(config, "key_multiplier"),
        "self_attn.v_proj": within,
        "self_attn.o_proj": _number(config, "attention_out_multiplier"),
        "mamba.out_proj": _number(config, "ssm_out_multiplier"),
    }
    module = source.rpartition(".")[0]
    return next((factor for end, factor in factors.items() if module.endswith(end)), 1.0)


def _sections(config: Config) -> torch.Tensor:
    """Return by what each row of the projection into the states is multiplied: gate, input, B, C, steps of time."""
    inner, heads = _inner(config), int(config.need("mamba_n_heads"))
    group = int(config.get(*states.GROUPS, default=1)) * int(config.need("mamba_d_state"))
    factors = config.get("ssm_multipliers", default=[1.0] * 5)
    return torch.cat(
        [torch.full((n,), float(f)) for n, f in zip((inner, inner, group, group, heads), factors, strict=True)]
    )


def _number(config: Config, key: str) -> float:
    return float(config.get(key, default=1.0))


def check_granite(config: Config) -> None:
    check(config)
    states_too = not all(attends(config))
    groups = int(config.get(*states.GROUPS, default=1))
    refuse(config, states_too and groups > 1, "it normalises all groups of its states at once")


def granite_shared(config: Config, writer: Any) -> None:
    """Write Granite's keys, and how wide what all tokens share is beside experts."""
    extra_granite(config, writer)
    if config.get("num_local_experts") and config.get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(int(config.get("shared_intermediate_size")))


def granite(config: Config, writer: Any) -> None:
    """Write Granite 4's keys, or those of a Bamba, which multiplies nothing."""
    if config.model_type != "bamba":
        granite_shared(config, writer)
    if not all(attends(config)):
        writer.add_rope_scaling_finetuned(rotates(config))
        mamba2(config, writer)


def rotates(config: Config) -> bool:
    """Return whether attention turns queries and keys: a Bamba always, a Granite 4 where it says so."""
    return config.model_type != "granitemoehybrid" or config.get("position_embedding_type") == "rope"


def parts_granite(model: MergedModel, config: Config, source: str) -> dict[str, Rows] | None:
    """Part the gates from the ups of what all tokens share; without experts it is the only MLP."""
    if ".shared_mlp." not in source:
        return None
    block = f"blk.{source.split('.')[2]}"
    end = "_shexp.weight" if config.get("num_local_experts") else ".weight"
    if source.endswith("output_linear.weight"):
        return {f"{block}.ffn_down{end}": lambda weight: weight}
    return {
        f"{block}.ffn_gate{end}": lambda weight: weight[: len(weight) // 2],
        f"{block}.ffn_up{end}": lambda weight: weight[len(weight) // 2 :],
    }


def granite_width(config: Config, model: MergedModel) -> int:
    """Return the MLP's width: without experts it is what all tokens share."""
    key = "intermediate_size" if config.get("num_local_experts") else "shared_intermediate_size"
    return int(config.need(key, "intermediate_size"))


def check_lfm2(config: Config) -> None:
    refuse(config, bool(config.get("conv_bias")), "its convolutions have biases")


def check_lfm2_moe(config: Config) -> None:
    check_lfm2(config)
    refuse(config, not config.get("norm_topk_prob", default=True), "norm_topk_prob is off")
    refuse(config, not config.get("use_expert_bias", default=True), "its router has no biases")
    refuse(config, float(config.get("routed_scaling_factor", default=1.0)) != 1.0, "its router scales what it weighs")


def lfm2(config: Config, writer: Any) -> None:
    writer.add_shortconv_l_cache(int(config.need("conv_L_cache")))


def lfm2_moe(config: Config, writer: Any) -> None:
    from gguf import ExpertGatingFuncType

    lfm2(config, writer)
    writer.add_leading_dense_block_count(int(config.get("num_dense_layers", default=0)))
    writer.add_expert_feed_forward_length(int(config.need("moe_intermediate_size")))
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def lfm2_width(config: Config, model: MergedModel) -> int:
    """Return how wide the MLP is: the config's number may be one from which it is reckoned."""
    first = next((name for name in model.names if name.endswith(".feed_forward.w1.weight")), None)
    return model.shape(first)[0] if first else int(config.need("intermediate_size", "block_ff_dim"))


def change_lfm2(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Return a convolution flat, in fp32."""
    if not source.endswith(".conv.conv.weight"):
        return None
    shape = model.shape(source)
    found = mapped(model, source, name, lambda weight: weight.flatten(1), shape=(shape[0], shape[-1]))
    return GgufTensor(found.name, found.shape, found.chunks, True, source)


def check_jamba(config: Config) -> None:
    check(config)
    refuse(config, int(config.get("mamba_expand", default=2)) != 2, "its states are not twice as wide as the model")


def jamba(config: Config, writer: Any) -> None:
    rank = config.get("mamba_dt_rank", default="auto")
    writer.add_ssm_conv_kernel(int(config.get("mamba_d_conv", default=4)))
    writer.add_ssm_inner_size(2 * config.hidden)
    writer.add_ssm_state_size(int(config.get("mamba_d_state", default=16)))
    writer.add_ssm_time_step_rank(-(-config.hidden // 16) if rank == "auto" else int(rank))


def check_nemotron(config: Config) -> None:
    check(config)
    act = config.get("mlp_hidden_act", default="relu2")
    refuse(config, act != "relu2", f"the activation is {act!r}")
    refuse(config, bool(config.get("use_bias")), "the projections into its states have biases")
    refuse(config, int(config.get("n_group", default=1)) > 1, "it chooses groups of experts")
    both = {"mlp", "moe"} <= set(kinds(config))
    refuse(config, both, "some of its layers have experts, and others one MLP")


def nemotron_width(config: Config, model: MergedModel) -> list[int]:
    """Return of each layer its MLP's width: none where it is no MLP."""
    sizes = {"mlp": "intermediate_size", "moe": "moe_intermediate_size"}
    return [int(config.need(sizes[kind])) if kind in sizes else 0 for kind in kinds(config)]


def nemotron(config: Config, writer: Any) -> None:
    """Write the states' sizes, and the norms' epsilon under llama.cpp's other name for it too, which it asks for."""
    mamba2(config, writer)
    writer.add_layer_norm_eps(float(config.get("layer_norm_epsilon", "rms_norm_eps", default=1e-5)))


def nemotron_moe(config: Config, writer: Any) -> None:
    nemotron(config, writer)
    routed_metadata(config, writer)
    writer.add_expert_shared_feed_forward_length(int(config.need("moe_shared_expert_intermediate_size")))
    if config.get("moe_latent_size"):
        writer.add_moe_latent_size(int(config.get("moe_latent_size")))


def with_experts(config: Config) -> bool:
    """Return whether some layers have experts."""
    return "moe" in kinds(config)
