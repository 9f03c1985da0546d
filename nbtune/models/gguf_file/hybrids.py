"""What a GGUF file says of layers with states or short convolutions, as the configs of those families have it.

Which layer is of which kind is seen by the tensors that it has.
"""

from __future__ import annotations

from typing import Any

from nbtune.models.gguf_file.header import refused
from nbtune.models.gguf_file.keys import Keys
from nbtune.models.gguf_file.mixtures import SIGMOID, TURNS, experts, gating, granite
from nbtune.models.gguf_file.rotary import rope_parameters
from nbtune.models.gguf_file.unread import SECTIONS

_FULL, _LINEAR = "full_attention", "linear_attention"
_GRANITES = ("embedding_scale", "residual_scale", "logit_scale", "attention.scale")  # what no Bamba has


def mamba(keys: Keys) -> dict[str, Any]:
    """Return a Mamba's, or a Falcon Mamba's, which normalises what its states are made of."""
    inner = keys.whole("ssm.inner_size")
    common, kind = _state_model(keys), {}
    if keys.flag("ssm.dt_b_c_rms", False):
        kind = {"model_type": "falcon_mamba", "mixer_rms_eps": common["layer_norm_epsilon"]}
    return {
        **kind, **common, "intermediate_size": inner, "expand": inner // max(keys.hidden, 1),
        "time_step_rank": keys.whole("ssm.time_step_rank"),
    }  # fmt: skip


def mamba2(keys: Keys) -> dict[str, Any]:
    heads, inner = keys.whole("ssm.time_step_rank"), keys.whole("ssm.inner_size")
    return {
        **_state_model(keys), "num_heads": heads, "head_dim": inner // max(heads, 1), "rms_norm": True,
        "n_groups": keys.whole("ssm.group_count", 1), "expand": inner // max(keys.hidden, 1),
    }  # fmt: skip


def _state_model(keys: Keys) -> dict[str, Any]:
    return {
        "state_size": keys.whole("ssm.state_size"),
        "conv_kernel": keys.whole("ssm.conv_kernel"),
        "layer_norm_epsilon": keys.real("attention.layer_norm_rms_epsilon"),
        "use_bias": False,
        "use_conv_bias": True,
    }


def falcon_h1(keys: Keys) -> dict[str, Any]:
    """Return a Falcon-H1's, whose files have all that it multiplies in their weights."""
    return {
        **_states(keys),
        "mamba_d_ssm": keys.whole("ssm.inner_size"),
        "mamba_rms_norm": keys.holds("ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "mlp_multipliers": [1.0] * 2,
        "ssm_multipliers": [1.0] * 5,
    }


def granite_hybrid(keys: Keys) -> dict[str, Any]:
    """Return a Granite 4's, or a Bamba's, which multiplies nothing."""
    kinds = ["mamba" if keys.holds("ssm_out.weight", i) else "attention" for i in range(keys.layers)]
    expanded = keys.whole("ssm.inner_size") // max(keys.hidden, 1)
    turns = keys.flag(TURNS, True)
    if turns and not any(map(keys.has, _GRANITES)):
        attending = [i for i, kind in enumerate(kinds) if kind == "attention"]
        return {"model_type": "bamba", **_states(keys), "mamba_expand": expanded, "attn_layer_indices": attending}
    routed = keys.whole("expert_count", 0)
    many: dict[str, Any] = {"num_local_experts": 0, "num_experts_per_tok": 0}
    shared = keys.first("ffn_gate_shexp.weight" if routed else "ffn_gate.weight")[0]
    if routed:
        found = experts(keys)
        many = {
            "num_local_experts": routed, "num_experts_per_tok": found["num_experts_per_tok"],
            "intermediate_size": found["moe_intermediate_size"],
        }  # fmt: skip
    return {
        **granite(keys), **_states(keys), **many, "mamba_expand": expanded, "layer_types": kinds,
        "shared_intermediate_size": shared, "position_embedding_type": "rope" if turns else None,
        "attention_bias": False,
    }  # fmt: skip


def _states(keys: Keys) -> dict[str, Any]:
    """Return the sizes of Mamba 2's states."""
    heads = keys.whole("ssm.time_step_rank")
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": keys.whole("ssm.inner_size") // max(heads, 1),
        "mamba_d_state": keys.whole("ssm.state_size"),
        "mamba_d_conv": keys.whole("ssm.conv_kernel"),
        "mamba_n_groups": keys.whole("ssm.group_count", 1),
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    }


def lfm2(keys: Keys) -> dict[str, Any]:
    kinds = ["conv" if keys.holds("shortconv.conv.weight", i) else _FULL for i in range(keys.layers)]
    return {
        "layer_types": kinds, "conv_L_cache": keys.whole("shortconv.l_cache"), "conv_bias": False,
        "block_auto_adjust_ff_dim": False, "norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
    }  # fmt: skip


def lfm2_moe(keys: Keys) -> dict[str, Any]:
    gating(keys, (SIGMOID,))
    return {
        **lfm2(keys), **experts(keys), "num_dense_layers": keys.whole("leading_dense_block_count", 0),
        "norm_topk_prob": True, "use_expert_bias": True, "routed_scaling_factor": 1.0,
    }  # fmt: skip


def jamba(keys: Keys) -> dict[str, Any]:
    attending = _period(keys, [keys.holds("attn_q.weight", i) for i in range(keys.layers)])
    mixed = [keys.holds("ffn_gate_exps.weight", i) for i in range(keys.layers)]
    routed = keys.whole("expert_count", 1) if any(mixed) else 1
    chosen = _period(keys, mixed) if any(mixed) else (1, 0)
    return {
        "num_experts": routed,
        "num_experts_per_tok": keys.whole("expert_used_count", 1) if any(mixed) else 1,
        "attn_layer_period": attending[0],
        "attn_layer_offset": attending[1],
        "expert_layer_period": chosen[0],
        "expert_layer_offset": chosen[1],
        "mamba_d_state": keys.whole("ssm.state_size"),
        "mamba_d_conv": keys.whole("ssm.conv_kernel"),
        "mamba_expand": keys.whole("ssm.inner_size") // max(keys.hidden, 1),
        "mamba_dt_rank": keys.whole("ssm.time_step_rank"),
    }


def _period(keys: Keys, layers: list[bool]) -> tuple[int, int]:
    """Return every how many layers something is so, and where that begins."""
    for period in range(1, len(layers) + 1):
        for offset in range(period):
            if layers == [i % period == offset for i in range(len(layers))]:
                return period, offset
    raise refused(keys.header.place, "its kinds of layers come in no regular order", "Name its Hub id.")


def nemotron(keys: Keys) -> dict[str, Any]:
    kinds = [_nemotron_kind(keys, i) for i in range(keys.layers)]
    found: dict[str, Any] = {
        "layers_block_type": kinds,
        "num_hidden_layers": keys.layers,
        "ssm_state_size": keys.whole("ssm.state_size"),
        "mamba_num_heads": keys.whole("ssm.time_step_rank"),
        "mamba_head_dim": keys.whole("ssm.inner_size") // max(keys.whole("ssm.time_step_rank"), 1),
        "n_groups": keys.whole("ssm.group_count", 1),
        "conv_kernel": keys.whole("ssm.conv_kernel"),
        "layer_norm_epsilon": keys.real("attention.layer_norm_rms_epsilon"),
    }
    if "moe" not in kinds:
        return found
    routed = experts(keys)
    return {
        **found,
        **routed,
        "n_routed_experts": routed.pop("num_experts"),
        "n_shared_experts": keys.whole("expert_shared_count", 1),
        "moe_shared_expert_intermediate_size": keys.whole("expert_shared_feed_forward_length"),
        "routed_scaling_factor": keys.real("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "moe_latent_size": keys.whole("moe_latent_size", 0) or None,
        "intermediate_size": routed["moe_intermediate_size"],
    }


def _nemotron_kind(keys: Keys, layer: int) -> str:
    marks = {"ssm_out.weight": "mamba", "attn_q.weight": "attention", "ffn_gate_inp.weight": "moe"}
    return next((kind for part, kind in marks.items() if keys.holds(part, layer)), "mlp")


def qwen35(keys: Keys) -> dict[str, Any]:
    """Return a Qwen3.5's, or what all of them with delta nets have."""
    values = keys.whole("ssm.time_step_rank")
    rope = rope_parameters(keys.header, keys.head_dim, keys.whole("context_length"))
    if sections := keys.header.items(f"{keys.arch}.{SECTIONS}", int):
        if not _turned_by_words(sections, keys.head_dim):
            raise refused(
                keys.header.place, f"its {keys.arch}.{SECTIONS} leave some of a head unturned", "Name its Hub id."
            )
        rope["mrope_section"] = sections[:3]
    return {
        "layer_types": [_LINEAR if keys.holds("ssm_out.weight", i) else _FULL for i in range(keys.layers)],
        "linear_num_key_heads": keys.whole("ssm.group_count"),
        "linear_num_value_heads": values,
        "linear_key_head_dim": keys.whole("ssm.state_size"),
        "linear_value_head_dim": keys.whole("ssm.inner_size") // max(values, 1),
        "linear_conv_kernel_dim": keys.whole("ssm.conv_kernel"),
        "rope_parameters": rope,
    }


def _turned_by_words(sections: list[int], head_dim: int) -> bool:
    """Return whether a text's own positions turn all of a head: those of time, height and width are alike in it, and a
    fourth is 0. (llama.cpp takes the three in turns, each as often as its section says.)"""
    total = min(sum(sections), head_dim)
    return total > 0 and len(sections) > 2 and all(at < 3 * sections[at % 3] for at in range(total))


def qwen35_moe(keys: Keys) -> dict[str, Any]:
    shared = keys.first("ffn_gate_shexp.weight")[0]
    return {
        **qwen35(keys), **experts(keys), "shared_expert_intermediate_size": shared, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip
