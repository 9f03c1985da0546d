"""What single families need: which configs llama.cpp runs otherwise, more metadata, weights that it wants otherwise."""

from __future__ import annotations

from typing import Any

import torch

from nbtune.errors import ExportError
from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.tensors import GgufTensor, mapped
from nbtune.export.merge import MergedModel


def refuse(config: Config, wrong: bool, what: str) -> None:
    """Raise an ExportError where `wrong` holds."""
    if wrong:
        raise ExportError(
            f"{config.model_type}: {what}, and llama.cpp does not run that",
            place=config.place,
            fix="export the merged safetensors or the adapter instead.",
        )


def check_llama(config: Config) -> None:
    refuse(config, config.get("hidden_act", default="silu") != "silu", "the activation is not silu")


def sliding(config: Config, writer: Any) -> None:
    if config.get("sliding_window"):
        writer.add_sliding_window(int(config.get("sliding_window")))


def check_qwen2_moe(config: Config) -> None:
    check_llama(config)
    refuse(config, bool(config.get("norm_topk_prob")), "norm_topk_prob is on")
    refuse(
        config,
        config.get("decoder_sparse_step", default=1) != 1 or bool(config.get("mlp_only_layers")),
        "some layers are dense",
    )


def check_qwen3_moe(config: Config) -> None:
    check_llama(config)
    refuse(config, not config.get("norm_topk_prob"), "norm_topk_prob is off")
    refuse(
        config,
        config.get("decoder_sparse_step", default=1) != 1 or bool(config.get("mlp_only_layers")),
        "some layers are dense",
    )


def extra_moe(config: Config, writer: Any) -> None:
    writer.add_expert_feed_forward_length(int(config.need("moe_intermediate_size")))
    if config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(int(config.get("shared_expert_intermediate_size")))


def change_qwen2_moe(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    if name.endswith("ffn_gate_inp_shexp.weight") and model.shape(source) == (1, config.hidden):  # of a LoRA: as it is
        return mapped(model, source, name, lambda weight: weight.flatten(), shape=(config.hidden,))
    return None


def check_olmoe(config: Config) -> None:
    check_llama(config)
    refuse(config, bool(config.get("norm_topk_prob")), "norm_topk_prob is on")
    refuse(config, config.kv_heads != config.heads, "several queries share a key")
    refuse(config, config.get("clip_qkv") is not None, "it clips queries, keys and values")


def check_gpt_oss(config: Config) -> None:
    gate = float(config.get("swiglu_alpha", default=1.702)), float(config.get("swiglu_limit", default=7.0))
    refuse(config, gate != (1.702, 7.0), "its gate's alpha and limit are not 1.702 and 7")
    usual = ["full_attention" if i % 2 else "sliding_attention" for i in range(config.layers)]
    refuse(config, list(config.get("layer_types", default=usual)) != usual, "its windows are not every other layer's")
    refuse(config, not config.get("attention_bias", default=True), "its attention has no biases")


def extra_gpt_oss(config: Config, writer: Any) -> None:
    writer.add_sliding_window(int(config.need("sliding_window")))
    writer.add_expert_feed_forward_length(int(config.need("intermediate_size")))


def check_gemma(config: Config) -> None:
    act = config.get("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    refuse(config, act not in ("gelu_pytorch_tanh", "gelu"), f"the activation is {act!r}")


def check_gemma_scale(config: Config) -> None:
    check_gemma(config)
    scalar = config.get("query_pre_attn_scalar", default=config.head_dim)
    refuse(
        config,
        scalar != config.head_dim and config.layers not in (46, 62),
        "query_pre_attn_scalar is not the head's width",
    )


def extra_gemma2(config: Config, writer: Any) -> None:
    writer.add_attn_logit_softcapping(float(config.get("attn_logit_softcapping", default=50.0)))
    writer.add_final_logit_softcapping(float(config.get("final_logit_softcapping", default=30.0)))
    writer.add_sliding_window(int(config.need("sliding_window")))


def check_gemma3(config: Config) -> None:
    check_gemma_scale(config)
    refuse(
        config, bool(config.get("attn_logit_softcapping") or config.get("final_logit_softcapping")), "it caps logits"
    )
    kinds = config.get("layer_types")
    usual = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(config.layers)]
    refuse(config, bool(kinds) and list(kinds) != usual, "its global layers are not every sixth")
    local = float(config.rope("sliding_attention")["rope_theta"]) if config.get("rope_parameters") else 10000.0
    local = float(config.get("rope_local_base_freq", default=local))
    refuse(config, local != 10000.0, "its local layers' rotary base is not 10000")


def extra_gemma3(config: Config, writer: Any) -> None:
    writer.add_sliding_window(int(config.need("sliding_window")))


def check_phi(config: Config) -> None:
    refuse(config, bool(config.get("qk_layernorm")), "it normalises queries and keys")


def check_falcon(config: Config) -> None:
    refuse(config, bool(config.get("alibi")), "it uses ALiBi")
    refuse(config, bool(config.get("bias")), "its linear layers have biases")
    refuse(config, not config.get("parallel_attn", default=True), "attention and MLP are not parallel")


def extra_falcon(config: Config, writer: Any) -> None:
    writer.add_tensor_data_layout("jploski")


def change_falcon(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Reorder q…, k, v of each key head into all q, all k, all v; where all queries share a key they lie so."""
    of_one = config.get("multi_query", default=True) and not config.get("new_decoder_architecture")
    if "attn_qkv" not in name or of_one:
        return None
    groups, per, dim = config.kv_heads, config.heads // config.kv_heads, config.head_dim

    def regroup(weight: torch.Tensor) -> torch.Tensor:
        parts = weight.reshape(groups, per + 2, dim, -1)
        q, k, v = parts[:, :per], parts[:, per : per + 1], parts[:, per + 1 :]
        return torch.cat([p.reshape(-1, weight.shape[1]) for p in (q, k, v)])

    return mapped(model, source, name, regroup)


def _mpt(config: Config, key: str, default: Any) -> Any:
    return (config.get("attn_config", default={}) or {}).get(key, default)


def check_mpt(config: Config) -> None:
    refuse(config, not config.get("no_bias", default=True), "its linear layers have biases")
    refuse(config, bool(_mpt(config, "qk_ln", False)), "it normalises queries and keys")
    refuse(config, not _mpt(config, "alibi", True), "it does not use ALiBi")


def extra_mpt(config: Config, writer: Any) -> None:
    writer.add_max_alibi_bias(float(_mpt(config, "alibi_bias_max", 8)))
    if _mpt(config, "clip_qkv", None) is not None:
        writer.add_clamp_kqv(float(_mpt(config, "clip_qkv", 0.0)))


def extra_granite(config: Config, writer: Any) -> None:
    writer.add_attention_scale(float(config.need("attention_multiplier")))
    writer.add_embedding_scale(float(config.need("embedding_multiplier")))
    writer.add_residual_scale(float(config.need("residual_multiplier")))
    writer.add_logit_scale(float(config.need("logits_scaling")))


def check_smollm3(config: Config) -> None:
    check_llama(config)
    rotated = config.get("no_rope_layers")
    usual = [int((i + 1) % 4 != 0) for i in range(config.layers)]
    refuse(config, bool(rotated) and list(rotated) != usual, "its layers without rotary are not every fourth")


def check_stablelm(config: Config) -> None:
    check_llama(config)
    refuse(config, bool(config.get("qk_layernorm")), "it normalises queries and keys")


def extra_parallel(config: Config, writer: Any) -> None:
    writer.add_parallel_residual(bool(config.get("use_parallel_residual", default=True)))


def check_starcoder2(config: Config) -> None:
    act = config.get("hidden_act", default="gelu_pytorch_tanh")
    refuse(config, act != "gelu_pytorch_tanh", f"the activation is {act!r}")
    refuse(config, not config.get("use_bias", default=True), "its linear layers have no biases")


def check_cohere(config: Config) -> None:
    check_llama(config)
    refuse(config, bool(config.get("use_qk_norm")), "it normalises queries and keys")


def extra_logit_scale(config: Config, writer: Any) -> None:
    writer.add_logit_scale(float(config.get("logit_scale", default=0.0625)))


def check_relu2(config: Config) -> None:
    act = config.get("hidden_act", default="relu2")
    refuse(config, act != "relu2", f"the activation is {act!r}")


def check_xielu(config: Config) -> None:
    act = config.get("hidden_act", default="xielu")
    refuse(config, act != "xielu", f"the activation is {act!r}")


def check_head_width(config: Config) -> None:
    """Refuse wider or narrower heads than all of the residual stream's width makes."""
    refuse(config, config.head_dim * config.heads != config.hidden, "its heads together are not as wide as the model")


def check_nemotron(config: Config) -> None:
    check_relu2(config)
    check_head_width(config)


def check_glm(config: Config) -> None:
    check_llama(config)
    check_head_width(config)


def check_jais2(config: Config) -> None:
    check_relu2(config)
    biased = config.get("attention_bias", default=True) and config.get("mlp_bias", default=True)
    refuse(config, not biased, "its linear layers have no biases")


def extra_olmo(config: Config, writer: Any) -> None:
    if config.get("clip_qkv") is not None:
        writer.add_clamp_kqv(float(config.get("clip_qkv")))


def change_by_head(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Make q, k, v of each head all q, all k, all v: GPT-NeoX and Bloom."""
    if "attn_qkv" not in name:
        return None

    def regroup(weight: torch.Tensor) -> torch.Tensor:
        parts = weight.reshape(config.heads, 3, config.head_dim, *weight.shape[1:])
        return parts.transpose(0, 1).reshape(weight.shape)

    return mapped(model, source, name, regroup)


def change_bigcode(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Return a StarCoder's heads sorted, where each has a key of its own."""
    return None if config.get("multi_query", default=True) else change_by_head(model, config, source, name)


def check_neox(config: Config) -> None:
    act = config.get("hidden_act", default="gelu")
    refuse(config, act not in ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"), f"the activation is {act!r}")
    refuse(config, not config.get("attention_bias", default=True), "its attention has no biases")


def check_gpt2(config: Config) -> None:
    act = config.get("activation_function", default="gelu_new")
    refuse(config, act not in ("gelu_new", "gelu", "gelu_pytorch_tanh"), f"the activation is {act!r}")
    refuse(config, bool(config.get("scale_attn_by_inverse_layer_idx")), "it scales attention by the layer")
    refuse(config, not config.get("scale_attn_weights", default=True), "it does not scale attention")


def check_bloom(config: Config) -> None:
    normed = bool(config.get("apply_residual_connection_post_layernorm"))
    refuse(config, normed, "what is added to is taken behind its norms")


def change_conv1d(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Turn GPT-2's linear layers, which are stored (in, out)."""
    shape = model.shape(source)
    if len(shape) != 2 or ".h." not in source:
        return None
    return mapped(model, source, name, lambda weight: weight.T.contiguous(), shape=shape[::-1])


def check_olmo3(config: Config) -> None:
    check_llama(config)
    check_every_fourth(config)
    if "sliding_attention" in config.get("rope_parameters", default={}):  # else the same base is meant for both
        base, local = config.rope()["rope_theta"], config.rope("sliding_attention")
        refuse(config, (local["rope_type"], local["rope_theta"]) != ("default", base), "its windows turn otherwise")


def check_every_fourth(config: Config) -> None:
    """Refuse where the layers without a window are not every fourth."""
    usual = ["full_attention" if (i + 1) % 4 == 0 else "sliding_attention" for i in range(config.layers)]
    refuse(config, list(config.get("layer_types", default=usual)) != usual, "its global layers are not every fourth")


def check_exaone4(config: Config) -> None:
    check_llama(config)
    windowed = "sliding_attention" in config.get("layer_types", default=()) or bool(config.get("sliding_window"))
    refuse(config, windowed and config.layers != 64, "it has windows, and not 64 layers")
    if windowed:
        check_every_fourth(config)


def check_cohere2(config: Config) -> None:
    check_llama(config)
    check_head_width(config)
    check_every_fourth(config)


def extra_cohere2(config: Config, writer: Any) -> None:
    sliding(config, writer)
    extra_logit_scale(config, writer)


def check_ministral(config: Config) -> None:
    check_llama(config)
    rope = config.rope()
    grows = bool(rope.get("llama_4_scaling_beta")) and rope["rope_type"] != "yarn"
    refuse(config, grows, "far tokens' queries grow without yarn's scaling")


def extra_ministral(config: Config, writer: Any) -> None:
    """Write by how much far tokens' queries grow, and that yarn scales no attention."""
    rope = config.rope()
    if rope["rope_type"] == "yarn" and rope.get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(1.0)  # what llama.cpp takes away again, whatever the config's number is
    if rope.get("llama_4_scaling_beta"):
        writer.add_attn_temperature_scale(float(rope["llama_4_scaling_beta"]))
        writer.add_attn_temperature_length(int(rope.get("original_max_position_embeddings") or config.context))
