"""What a GGUF file says of its experts, as the configs of those families have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbtune.models.gguf_file import windows
from nbtune.models.gguf_file.header import refused
from nbtune.models.gguf_file.keys import Keys
from nbtune.models.gguf_file.rotary import refuse_half_scaled, rope_parameters

CHUNK_LLAMA4 = 8192  # tokens of a chunk of its text, and from how many on far queries grow: llama.cpp has it in itself
UNNORMED_LLAMA4 = 128  # experts of the Llama 4 whose queries and keys are not normed
_LEAST_EPSILON, _MOST_EPSILON = 1e-7, 1.1e-5  # beside 1e-6, which transformers has for norms of latent vectors
_SOFTMAX, SIGMOID = 1, 2  # llama.cpp's number for routers that weigh by one
_UNCLIPPED = 1e9  # of a DBRX, which always clips
TURNS = "rope.scaling.finetuned"
DEEPSEEK_BITS = 6  # digits to which a factor is rounded that was written as one of ten in half of fp64


def biases(keys: Keys) -> dict[str, Any]:
    """Return which linear layers have biases."""
    return {"attention_bias": keys.holds("attn_q.bias"), "mlp_bias": keys.holds("ffn_up.bias")}


def windowless(keys: Keys) -> dict[str, Any]:
    """Turn Qwen's windows off: llama.cpp runs none."""
    return {"use_sliding_window": False}


def experts(keys: Keys) -> dict[str, Any]:
    """Return how many experts there are, how many a token takes, and how wide they are."""
    width = keys.whole("expert_feed_forward_length", 0) or keys.any("ffn_up_exps.weight")[1]
    return {
        "num_experts": keys.whole("expert_count"),
        "num_experts_per_tok": keys.whole("expert_used_count"),
        "moe_intermediate_size": width,
    }


def qwen2(keys: Keys) -> dict[str, Any]:
    shared = keys.first("ffn_gate_shexp.weight")[0]
    return {
        **windowless(keys), **experts(keys), "shared_expert_intermediate_size": shared, "norm_topk_prob": False,
    }  # fmt: skip


def qwen3(keys: Keys) -> dict[str, Any]:
    return {**windowless(keys), **experts(keys), "norm_topk_prob": True}


def olmoe(keys: Keys) -> dict[str, Any]:
    found = experts(keys)
    return {**found, "intermediate_size": found.pop("moe_intermediate_size"), "norm_topk_prob": False}


def gpt_oss(keys: Keys) -> dict[str, Any]:
    refuse_half_scaled(keys.header)
    if (turned := keys.whole("rope.dimension_count", keys.head_dim)) != keys.head_dim:
        said = f"{keys.arch}.rope.dimension_count is {turned:,}"
        raise refused(keys.header.place, f"its {said} of the {keys.head_dim:,} numbers of a head, not all")
    return {
        **_local(keys),
        "sliding_window": windows.window(keys),
        "layer_types": windows.kinds(keys, 2),
    }


def llama4(keys: Keys) -> dict[str, Any]:
    refuse_half_scaled(keys.header)
    if keys.whole("attention.sliding_window", CHUNK_LLAMA4) == 0:
        raise refused(keys.header.place, f"its {keys.arch}.attention.sliding_window is 0: it has no chunks of text")
    if windows.kinds(keys, 4) != windows.usual(keys.layers, 4):
        raise refused(keys.header.place, f"its {keys.arch}.attention.sliding_window_pattern is not a Llama 4's")
    found = _local(keys)
    every = keys.whole("interleave_moe_layer_step", 1)
    return {
        **found,
        "intermediate_size_mlp": keys.whole("feed_forward_length"),
        "interleave_moe_layer_step": every,
        "use_qk_norm": found["num_local_experts"] != UNNORMED_LLAMA4,
        "attention_chunk_size": CHUNK_LLAMA4,
        "floor_scale": CHUNK_LLAMA4,
        "pad_token_id": None,
    }


def granite(keys: Keys) -> dict[str, Any]:
    if keys.arch == "granite" and not keys.flag(TURNS, True):
        raise refused(keys.header.place, f"its {keys.arch}.{TURNS} is no: none of its heads turns", "Name its Hub id.")
    return {
        **biases(keys),
        "attention_multiplier": keys.real("attention.scale", 0.0) or keys.head_dim**-0.5,
        "embedding_multiplier": keys.real("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": keys.real("residual_scale", 0.0) or 1.0,
        "logits_scaling": keys.cap("logit_scale"),
    }


def granite_moe(keys: Keys) -> dict[str, Any]:
    found = {**granite(keys), **_local(keys)}
    if keys.holds("ffn_gate_shexp.weight"):
        found |= {
            "model_type": "granitemoeshared", "shared_intermediate_size": keys.first("ffn_gate_shexp.weight")[0],
        }  # fmt: skip
    return found


def minimax(keys: Keys) -> dict[str, Any]:
    gating(keys, (SIGMOID,))
    return {**_local(keys), "pad_token_id": None}


def hunyuan_dense(keys: Keys) -> dict[str, Any]:
    """Return the rotary base as alpha stretches it, too."""
    rope = rope_parameters(keys.header, keys.head_dim, keys.whole("context_length"))
    if (alpha := keys.real("rope.scaling.alpha", 0.0)) > 0:
        rope["rope_theta"] *= alpha ** (keys.head_dim / max(keys.head_dim - 2, 1))
    return {**biases(keys), "rope_parameters": rope}


def hunyuan(keys: Keys) -> dict[str, Any]:
    found = experts(keys)
    used = [found["num_experts_per_tok"]] * keys.layers
    return {
        "attention_bias": keys.holds("attn_q.bias"), "num_experts": found["num_experts"], "moe_topk": used,
        "intermediate_size": found["moe_intermediate_size"],
    }  # fmt: skip


def dots(keys: Keys) -> dict[str, Any]:
    return {**_routed(keys), "layer_types": ["full_attention"] * keys.layers}


def glm4(keys: Keys) -> dict[str, Any]:
    return {
        **_routed(keys), "attention_bias": keys.holds("attn_q.bias"), "use_qk_norm": keys.holds("attn_q_norm.weight"),
        "pad_token_id": None,
    }  # fmt: skip


def ernie(keys: Keys) -> dict[str, Any]:
    found = experts(keys)
    return {
        "use_bias": keys.holds("attn_q.bias"),
        "moe_num_experts": found["num_experts"],
        "moe_k": found["num_experts_per_tok"],
        "moe_intermediate_size": found["moe_intermediate_size"],
        "moe_num_shared_experts": keys.whole("expert_shared_count", 0),
        "moe_layer_start_index": keys.whole("leading_dense_block_count", 0),
        "moe_layer_interval": keys.whole("interleave_moe_layer_step", 1),
    }


def deepseek(keys: Keys) -> dict[str, Any]:
    """Return the widths of heads and latent vectors, too.

    Newer files keep attention for one latent head: then the keys' widths stand under names that end in ``_mla``.
    """
    rotary, context = keys.whole("rope.dimension_count"), keys.whole("context_length")
    latent = "_mla" if keys.has("attention.key_length_mla") and keys.has("attention.value_length_mla") else ""
    third = gating(keys, (_SOFTMAX, SIGMOID)) == SIGMOID
    rope = rope_parameters(keys.header, rotary, context)
    rope |= _latent_scaling(keys, rope)
    heads = keys.whole("attention.head_count")
    kind: dict[str, Any] = {"model_type": "deepseek_v3", "first_k_dense_replace": keys.layers}  # no experts
    if keys.whole("expert_count", 0):
        kind = {"model_type": "deepseek_v3" if third else "deepseek_v2", **_routed(keys, (_SOFTMAX, SIGMOID))}
        if not third and (odd := _beyond_greedy(kind)):
            raise refused(keys.header.place, f"its {keys.arch}.{odd} is more than a deepseek_v2 weighs by")
        kind |= {} if third else {"topk_method": "greedy"}
    return {
        **kind,
        "num_key_value_heads": heads,
        "head_dim": rotary,
        "rope_parameters": rope,
        "q_lora_rank": keys.whole("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": keys.whole("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": keys.whole(f"attention.key_length{latent}") - rotary,
        "v_head_dim": keys.whole(f"attention.value_length{latent}"),
        "attention_bias": False,
    }


def see_epsilon(keys: Keys, key: str) -> None:
    """Refuse an epsilon that is not near the one which transformers has in a class, whatever its config says."""
    if not _LEAST_EPSILON <= keys.real(key) <= _MOST_EPSILON:
        raise refused(keys.header.place, f"its {keys.arch}.{key} is not that of all of its norms", "Name its Hub id.")


def _latent_scaling(keys: Keys, rope: Mapping[str, Any]) -> dict[str, float]:
    """Return by how much yarn scales attention to latent vectors, whose norms are seen to be transformers', too."""
    see_epsilon(keys, "attention.layer_norm_rms_epsilon")
    if rope["rope_type"] not in ("default", "yarn") or rope.get("factor", 1.0) < 1:
        said = f"{keys.arch}.rope.scaling.type, its factor or rope.scale_linear"
        raise refused(keys.header.place, f"its {said} scales attention, too", "Name its Hub id.")
    if rope["rope_type"] != "yarn":
        return {}
    if "attention_factor" in rope:
        said = f"{keys.arch}.rope.scaling.attn_factor"
        raise refused(keys.header.place, f"its {said} scales products of queries and keys, too", "Name its Hub id.")
    factor = keys.real("rope.scaling.yarn_log_multiplier", 0.0)
    if not factor:
        said = f"{keys.arch}.rope.scaling.yarn_log_multiplier"
        raise refused(keys.header.place, f"its {said} is none: yarn scales its attention otherwise", "Name its Hub id.")
    return dict.fromkeys(("mscale", "mscale_all_dim"), round(10 * factor, DEEPSEEK_BITS))


def _beyond_greedy(kind: Mapping[str, Any]) -> str:
    """Return the key by which llama.cpp chooses or weighs experts otherwise than a DeepSeek V2; "": none does."""
    return "expert_weights_norm" if kind["norm_topk_prob"] else "expert_group_count" if kind["n_group"] > 1 else ""


def gating(keys: Keys, known: tuple[int, ...]) -> int:
    """Return by what a router weighs, by llama.cpp's number; the first known one where it is not said.

    Raises:
        SpecError: it is none of those that are known.
    """
    if (kind := keys.whole("expert_gating_func", 0) or known[0]) not in known:
        raise refused(keys.header.place, f"its {keys.arch}.expert_gating_func is {kind}, and {known} are known")
    return kind


def minicpm3(keys: Keys) -> dict[str, Any]:
    see_epsilon(keys, "attention.layer_norm_rms_epsilon")
    rotary, heads = keys.whole("rope.dimension_count"), keys.whole("attention.head_count")
    return {
        "num_key_value_heads": heads,
        "head_dim": None,
        "rope_parameters": rope_parameters(keys.header, rotary, keys.whole("context_length")),
        "q_lora_rank": keys.whole("attention.q_lora_rank"),
        "kv_lora_rank": keys.whole("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": keys.whole("attention.key_length") - rotary,
        "v_head_dim": keys.whole("attention.value_length"),
    }


def afmoe(keys: Keys) -> dict[str, Any]:
    if windows.kinds(keys, 4) != windows.usual(keys.layers, 4):  # by which llama.cpp turns heads, whatever a file says
        raise refused(keys.header.place, f"its {keys.arch}.attention.sliding_window_pattern is not that of an AFMoE")
    refuse_half_scaled(keys.header)
    return {
        **experts(keys), **_windows(keys), "num_dense_layers": keys.whole("leading_dense_block_count", 0),
        "num_shared_experts": keys.whole("expert_shared_count", 0), "mup_enabled": True,
        "route_scale": keys.real("expert_weights_scale", 1.0) or 1.0,
    }  # fmt: skip


def exaone(keys: Keys) -> dict[str, Any]:
    found = _routed(keys)
    return {
        **found, **_windows(keys), "num_experts": found.pop("n_routed_experts"),
        "num_shared_experts": found.pop("n_shared_experts"),
    }  # fmt: skip


def _windows(keys: Keys) -> dict[str, Any]:
    return {"sliding_window": windows.window(keys), "layer_types": windows.kinds(keys, 4)}


def _local(keys: Keys) -> dict[str, Any]:
    """Return the number of experts under its other name, and their width where an MLP's stands."""
    found = experts(keys)
    return {
        "num_local_experts": found["num_experts"],
        "num_experts_per_tok": found["num_experts_per_tok"],
        "intermediate_size": found["moe_intermediate_size"],
    }


def _routed(keys: Keys, known: tuple[int, ...] = (SIGMOID,)) -> dict[str, Any]:
    gating(keys, known)
    found = experts(keys)
    groups = keys.whole("expert_group_count", 1) or 1
    used = keys.whole("expert_group_used_count", 1) if groups > 1 else 1
    if found["num_experts_per_tok"] > (there := found["num_experts"] // groups * used):
        said = f"{keys.arch}.expert_used_count is {found['num_experts_per_tok']:,}"
        raise refused(keys.header.place, f"its {said}, of the {there:,} experts in the groups that a token takes")
    return {
        "n_routed_experts": found.pop("num_experts"),
        **found,
        "n_shared_experts": keys.whole("expert_shared_count", 0),
        "first_k_dense_replace": keys.whole("leading_dense_block_count", 0),
        "routed_scaling_factor": keys.real("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "n_group": groups,
        "topk_group": used,
    }


def dbrx(keys: Keys) -> dict[str, Any]:
    see_epsilon(keys, "attention.layer_norm_epsilon")
    heads = keys.whole("attention.head_count")
    found = experts(keys)
    return {
        "d_model": keys.hidden,
        "n_heads": heads,
        "n_layers": keys.layers,
        "max_seq_len": keys.whole("context_length"),
        "attn_config": {
            "kv_n_heads": keys.whole("attention.head_count_kv", heads),
            "clip_qkv": keys.cap("attention.clamp_kqv", _UNCLIPPED),
            "rope_theta": keys.real("rope.freq_base", 10000.0),
        },
        "ffn_config": {
            "ffn_hidden_size": found["moe_intermediate_size"],
            "moe_num_experts": found["num_experts"],
            "moe_top_k": found["num_experts_per_tok"],
            "moe_normalize_expert_weights": 1.0,
        },
    }
