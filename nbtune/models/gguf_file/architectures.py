"""The architectures of llama.cpp that are read: transformers' name of each, and what it fixes by itself.

Of a config is written out what an architecture takes for granted (an activation, an order of layers); what is said by
the tensors that are there (biases, kinds of norms) is read from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbtune.models.gguf_file import gemmas, hybrids, mixtures, windows
from nbtune.models.gguf_file.header import refused
from nbtune.models.gguf_file.keys import Keys
from nbtune.models.gguf_file.rotary import refuse_half_scaled, rope_parameters

_ALIBI = 8.0  # transformers knows no other
_ENDS = {"beta_fast": 32.0, "beta_slow": 1.0}  # of yarn, in turns
_WINDOWED_EXAONE = 64  # layers of the one EXAONE 4 with which llama.cpp runs windows


@dataclass(frozen=True)
class Architecture:
    """How an architecture of llama.cpp is read.

    Args:
        model_type: transformers' name.
        more: settings beyond the common ones.
        permute: query and key rows lie in llama.cpp's neighbour-wise order.
        norm_plus_one: norms are stored as 1 + w.
        layer_norm: norms are LayerNorms.
        layered: layers are of several kinds, so that some numbers are said of each.
        states: it has states, and no attention.
    """

    model_type: str
    more: Callable[[Keys], dict[str, Any]] = lambda keys: {}
    permute: bool = False
    norm_plus_one: bool = False
    layer_norm: bool = False
    layered: bool = False
    states: bool = False


def _llama(keys: Keys) -> dict[str, Any]:
    if keys.whole("expert_count", 0):
        experts = {
            "num_local_experts": keys.whole("expert_count"),
            "num_experts_per_tok": keys.whole("expert_used_count"),
        }
        return {"model_type": "mixtral", "sliding_window": None, **experts}
    return mixtures.biases(keys)


def _qwen3(keys: Keys) -> dict[str, Any]:
    return {**mixtures.windowless(keys), "attention_bias": keys.holds("attn_q.bias")}


def _phi3(keys: Keys) -> dict[str, Any]:
    return {
        "sliding_window": None,  # llama.cpp runs none, whatever the file says
        "original_max_position_embeddings": keys.whole(
            "rope.scaling.original_context_length", keys.whole("context_length")
        ),
        "pad_token_id": None,
    }


def _gemma(keys: Keys) -> dict[str, Any]:
    return {"hidden_activation": "gelu_pytorch_tanh"}


def _gemma_scale(keys: Keys, wide: int) -> dict[str, Any]:
    """Return how queries are scaled: the largest model's are by the width that a head would have."""
    apart = keys.layers == wide
    scalar = keys.hidden // keys.whole("attention.head_count") if apart else keys.head_dim
    return {**_gemma(keys), "query_pre_attn_scalar": scalar}


def _gemma2(keys: Keys) -> dict[str, Any]:
    refuse_half_scaled(keys.header)
    return {
        **_gemma_scale(keys, 46),
        "sliding_window": windows.window(keys, 4096),
        "layer_types": windows.kinds(keys, 2),
        "attn_logit_softcapping": keys.cap("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.cap("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys) -> dict[str, Any]:
    everywhere = rope_parameters(keys.header, keys.head_dim, keys.whole("context_length"))
    if everywhere["rope_type"] == "yarn":
        said = f"{keys.arch}.rope.scaling.type is yarn, whose rope.scaling.attn_factor is also that of windows"
        raise refused(keys.header.place, f"its {said}", "Name its Hub id.")
    size = keys.whole("attention.sliding_window", 0)
    return {
        **_gemma_scale(keys, 62),
        "sliding_window": size or keys.whole("context_length"),
        "layer_types": windows.kinds(keys, 6) if size else [windows.FULL] * keys.layers,
        "final_logit_softcapping": keys.real("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {
            windows.FULL: everywhere,
            windows.SLIDING: {"rope_type": "default", "rope_theta": keys.real("rope.freq_base_swa", 10000.0)},
        },
    }


def _smollm3(keys: Keys) -> dict[str, Any]:
    kinds = [int((i + 1) % 4 != 0) for i in range(keys.layers)]
    return {"use_sliding_window": False, "no_rope_layers": kinds, "no_rope_layer_interval": 4, "pad_token_id": None}


def _phi(keys: Keys) -> dict[str, Any]:
    return {"hidden_act": "gelu_new"}


def _falcon(keys: Keys) -> dict[str, Any]:
    new = keys.holds("attn_norm_2.weight")
    groups = keys.whole("attention.head_count_kv", 1)
    return {
        "new_decoder_architecture": new,
        "num_kv_heads": groups,
        "multi_query": groups == 1,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "ffn_hidden_size": keys.whole("feed_forward_length", 4 * keys.hidden),
    }


def _mpt(keys: Keys) -> dict[str, Any]:
    clip = keys.real("attention.clamp_kqv", 0.0)
    if (slope := keys.real("attention.max_alibi_bias", 0.0)) != _ALIBI:
        raise refused(keys.header.place, f"its {keys.arch}.attention.max_alibi_bias is {slope:g}, and no mpt's")
    return {
        "d_model": keys.hidden,
        "n_heads": keys.whole("attention.head_count"),
        "n_layers": keys.layers,
        "max_seq_len": keys.whole("context_length"),
        "expansion_ratio": keys.whole("feed_forward_length", 4 * keys.hidden) // max(keys.hidden, 1),
        "no_bias": True,
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": int(_ALIBI),
            "clip_qkv": clip or None,
        },
    }


def _olmo2(keys: Keys) -> dict[str, Any]:
    if not (window := keys.whole("attention.sliding_window", 0)):
        return {"attention_bias": False}
    turned = rope_parameters(keys.header, keys.head_dim, keys.whole("context_length"))
    if keys.text("rope.scaling.type", "none") != "none" or turned["rope_type"] != "default":
        said = f"{keys.arch}.rope.scaling.type, rope.scaling.factor or rope.scale_linear"
        raise refused(keys.header.place, f"its {said} scales some of its layers", "Name its Hub id.")
    from transformers import Olmo3Config  # newer ones have a base for each kind of layers, and see no other

    if windows.FULL in (Olmo3Config().rope_parameters or {}):
        turned = {windows.FULL: turned, windows.SLIDING: turned}
    return {
        "model_type": "olmo3",
        "sliding_window": window,
        "layer_types": windows.kinds(keys, 4),
        "rope_parameters": turned,
    }


def _relu2(keys: Keys) -> dict[str, Any]:
    return {**mixtures.biases(keys), "hidden_act": "relu2"}


def _nemotron(keys: Keys) -> dict[str, Any]:
    return {**_relu2(keys), "norm_eps": keys.real("attention.layer_norm_epsilon")}


def _cohere(keys: Keys) -> dict[str, Any]:
    return {
        "attention_bias": keys.holds("attn_q.bias"),
        "logit_scale": keys.real("logit_scale") or 1.0,
        "pad_token_id": None,
    }


def _cohere2(keys: Keys) -> dict[str, Any]:
    return {**_cohere(keys), "sliding_window": windows.window(keys), "layer_types": windows.kinds(keys, 4)}


def _ernie(keys: Keys) -> dict[str, Any]:
    return {"use_bias": keys.holds("attn_q.bias")}


def _exaone4(keys: Keys) -> dict[str, Any]:
    window = keys.whole("attention.sliding_window", 0) if keys.layers == _WINDOWED_EXAONE else 0
    kinds = windows.kinds(keys, 4) if window else [windows.FULL] * keys.layers
    return {"sliding_window": window or None, "layer_types": kinds}


def _glm4(keys: Keys) -> dict[str, Any]:
    return {"attention_bias": keys.holds("attn_q.bias"), "pad_token_id": None}


def _gpt_neox(keys: Keys) -> dict[str, Any]:
    return {"use_parallel_residual": keys.flag("use_parallel_residual", True)}


def _seed_oss(keys: Keys) -> dict[str, Any]:
    return {"attention_bias": keys.holds("attn_q.bias"), "attention_out_bias": keys.holds("attn_output.bias")}


def _stablelm(keys: Keys) -> dict[str, Any]:
    return {"use_qkv_bias": keys.holds("attn_q.bias"), "use_parallel_residual": not keys.holds("ffn_norm.weight")}


def _starcoder2(keys: Keys) -> dict[str, Any]:
    return {"use_bias": keys.holds("attn_q.bias"), "hidden_act": "gelu_pytorch_tanh", "sliding_window": None}


def _ministral(keys: Keys) -> dict[str, Any]:
    """Return by how much far tokens' queries grow, too."""
    context = keys.whole("context_length")
    rope = rope_parameters(keys.header, keys.head_dim, context)
    multiplier = keys.real("rope.scaling.yarn_log_multiplier", 0.0)
    if multiplier and rope["rope_type"] == "linear":
        said = f"{keys.arch}.rope.scaling.yarn_log_multiplier is {multiplier:g}"
        raise refused(keys.header.place, f"its {said}, and its rope.scaling.type is not yarn")
    if rope["rope_type"] == "yarn":
        if multiplier:
            if "attention_factor" in rope:
                said = f"{keys.arch}.rope.scaling.attn_factor and rope.scaling.yarn_log_multiplier"
                raise refused(keys.header.place, f"its {said} are both there")
            rope |= {"mscale": 1.0, "mscale_all_dim": multiplier}  # 1: it scales no attention
        rope |= {name: keys.cap(f"rope.scaling.yarn_{name}", usual) for name, usual in _ENDS.items()}
    growth = keys.real("attention.temperature_scale", 0.0)
    length = keys.whole("attention.temperature_length", context) if growth else context
    original = rope.setdefault("original_max_position_embeddings", length)
    if growth and original != length:
        said = f"{keys.arch}.attention.temperature_length is {length:,}, and its rope.scaling.original_context_length"
        raise refused(keys.header.place, f"its {said} {original:,}: transformers has one number for both")
    return {"rope_parameters": {**rope, "llama_4_scaling_beta": growth}, "sliding_window": None, "pad_token_id": None}


def _starcoder(keys: Keys) -> dict[str, Any]:
    heads = keys.whole("attention.head_count")
    shared = heads > 1 and keys.whole("attention.head_count_kv", heads) == 1
    return {"multi_query": shared, "n_inner": keys.whole("feed_forward_length"), "num_key_value_heads": None}


def _olmo(keys: Keys) -> dict[str, Any]:
    mixtures.see_epsilon(keys, "attention.layer_norm_epsilon")
    return {"clip_qkv": keys.real("attention.clamp_kqv", 0.0) or None}


ARCHITECTURES: dict[str, Architecture] = {
    "falcon": Architecture("falcon", _falcon, layer_norm=True),
    "gemma": Architecture("gemma", _gemma, norm_plus_one=True),
    "gemma2": Architecture("gemma2", _gemma2, norm_plus_one=True),
    "gemma3": Architecture("gemma3_text", _gemma3, norm_plus_one=True),
    "gemma3n": Architecture("gemma3n_text", gemmas.gemma3n),
    "gemma4": Architecture("gemma4_text", gemmas.gemma4, layered=True),
    "gpt-oss": Architecture("gpt_oss", mixtures.gpt_oss),
    "granite": Architecture("granite", mixtures.granite, permute=True),
    "granitemoe": Architecture("granitemoe", mixtures.granite_moe, permute=True),
    "llama": Architecture("llama", _llama, permute=True),
    "llama4": Architecture("llama4_text", mixtures.llama4),
    "mpt": Architecture("mpt", _mpt, layer_norm=True),
    "olmo2": Architecture("olmo2", _olmo2),
    "olmoe": Architecture("olmoe", mixtures.olmoe),
    "phi2": Architecture("phi", _phi, layer_norm=True),
    "phi3": Architecture("phi3", _phi3),
    "qwen2": Architecture("qwen2", mixtures.windowless),
    "qwen2moe": Architecture("qwen2_moe", mixtures.qwen2),
    "qwen3": Architecture("qwen3", _qwen3),
    "qwen3moe": Architecture("qwen3_moe", mixtures.qwen3),
    "smollm3": Architecture("smollm3", _smollm3, permute=True),
    "apertus": Architecture("apertus", mixtures.biases),
    "arcee": Architecture("arcee", _relu2, permute=True),
    "bloom": Architecture("bloom", layer_norm=True),
    "cohere2": Architecture("cohere2", _cohere2, layer_norm=True),
    "command-r": Architecture("cohere", _cohere, layer_norm=True),
    "ernie4_5": Architecture("ernie4_5", _ernie),
    "exaone4": Architecture("exaone4", _exaone4),
    "glm4": Architecture("glm4", _glm4),
    "gpt2": Architecture("gpt2", layer_norm=True),
    "gptneox": Architecture("gpt_neox", _gpt_neox, layer_norm=True),
    "nemotron": Architecture("nemotron", _nemotron, layer_norm=True, norm_plus_one=True),
    "olmo": Architecture("olmo", _olmo, layer_norm=True, permute=True),
    "seed_oss": Architecture("seed_oss", _seed_oss),
    "stablelm": Architecture("stablelm", _stablelm, layer_norm=True),
    "starcoder2": Architecture("starcoder2", _starcoder2, layer_norm=True),
    "afmoe": Architecture("afmoe", mixtures.afmoe),
    "chatglm": Architecture("glm", _glm4),
    "exaone": Architecture("exaone", mixtures.biases),
    "exaone-moe": Architecture("exaone_moe", mixtures.exaone),
    "minicpm3": Architecture("minicpm3", mixtures.minicpm3),
    "deepseek2": Architecture("deepseek_v3", mixtures.deepseek),
    "dbrx": Architecture("dbrx", mixtures.dbrx, layer_norm=True),
    "dots1": Architecture("dots1", mixtures.dots),
    "ernie4_5-moe": Architecture("ernie4_5_moe", mixtures.ernie),
    "glm4moe": Architecture("glm4_moe", mixtures.glm4),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", mixtures.hunyuan_dense),
    "hunyuan-moe": Architecture("hunyuan_v1_moe", mixtures.hunyuan),
    "jais2": Architecture("jais2", _relu2, layer_norm=True),
    "minimax-m2": Architecture("minimax_m2", mixtures.minimax),
    "mistral3": Architecture("ministral3", _ministral, permute=True),
    "starcoder": Architecture("gpt_bigcode", _starcoder, layer_norm=True),
    "falcon-h1": Architecture("falcon_h1", hybrids.falcon_h1),
    "granitehybrid": Architecture("granitemoehybrid", hybrids.granite_hybrid, permute=True, layered=True),
    "jamba": Architecture("jamba", hybrids.jamba, layered=True),
    "lfm2": Architecture("lfm2", hybrids.lfm2, layered=True),
    "lfm2moe": Architecture("lfm2_moe", hybrids.lfm2_moe, layered=True),
    "mamba": Architecture("mamba", hybrids.mamba, states=True),
    "mamba2": Architecture("mamba2", hybrids.mamba2, states=True),
    "nemotron_h": Architecture("nemotron_h", hybrids.nemotron, layered=True),
    "nemotron_h_moe": Architecture("nemotron_h", hybrids.nemotron, layered=True),
    "qwen35": Architecture("qwen3_5_text", hybrids.qwen35, norm_plus_one=True),
    "qwen35moe": Architecture("qwen3_5_moe_text", hybrids.qwen35_moe, norm_plus_one=True),
    "qwen3next": Architecture("qwen3_next", hybrids.qwen35_moe, norm_plus_one=True),
}
