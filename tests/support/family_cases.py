"""A tiny model of every family that nbtune writes as GGUF: the table of `tests.support.families`."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.support.newer_cases import NEWER

WITHOUT_ADAPTER = {"kv_lora_rank", "moe_latent_size", "hidden_size_per_layer_input"}
"""Sizes of what llama.cpp multiplies without a look at adapters."""
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
MSCALED = {**YARN, "mscale": 0.8, "mscale_all_dim": 0.8}
LATENT = {
    **SIZES,
    **EXPERTS,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
}
ROUTED = {
    **SIZES, "num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT_DENSE = {
    key: value for key, value in LATENT.items() if "expert" not in key and not key.startswith(("moe", "first_k"))
}  # fmt: skip
WINDOWED = {"head_dim": 16, "sliding_window": 256, "max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
STATES = {"hidden_size": 64, "state_size": 16, "num_hidden_layers": 2}
MULTIPLIED = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
DELTA = {
    **SIZES, "num_hidden_layers": 4, "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
NEMOTRON_H = {
    **SIZES, "num_hidden_layers": 3, "head_dim": 16, "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 16,
    "n_groups": 2, "chunk_size": 16,
}  # fmt: skip
LFM2 = ["conv", "full_attention", "conv"]
MINISTRAL = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
SHARED_EXPERT = {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 48}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0 + i / 4 for i in range(8)],
    "short_factor": [1.0 + i / 16 for i in range(8)],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model: transformers' class of its config, the config's fields, the kind of its tokenizer.

    Its numbers may be off by `times` the limits: sparse gates make much of last bits.
    """

    config: str
    options: dict[str, Any]
    tokenizer: str = "llama3"
    times: float = 1.0


CASES = {
    "llama 2, codellama, yi": Case("LlamaConfig", SIZES, "sentencepiece"),
    "llama 3, smollm, deepseek distilled": Case(
        "LlamaConfig",
        {
            **SIZES,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "llama with biases": Case("LlamaConfig", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": Case("LlamaConfig", {**SIZES, "head_dim": 32}),
    "llama with linear scaling": Case(
        "LlamaConfig", {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}
    ),
    "llama with yarn": Case("LlamaConfig", {**SIZES, "rope_parameters": YARN}),
    "mistral": Case("MistralConfig", {**SIZES, "sliding_window": None}, "sentencepiece"),
    "mixtral": Case("MixtralConfig", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}, "sentencepiece"),
    "qwen 1.5, 2, 2.5": Case("Qwen2Config", SIZES, "qwen2"),
    "qwen2 moe": Case(
        "Qwen2MoeConfig", {**SIZES, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 48}, "qwen2"
    ),
    "qwen3": Case("Qwen3Config", {**SIZES, "head_dim": 32}, "qwen2"),
    "qwen3 moe": Case("Qwen3MoeConfig", {**SIZES, **EXPERTS, "num_experts": 4, "norm_topk_prob": True}, "qwen2"),
    "olmoe": Case(
        "OlmoeConfig",
        {**SIZES, "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2},
        "dbrx",
    ),
    "granite moe": Case(
        "GraniteMoeConfig",
        {
            **SIZES,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
        "digits",
    ),
    "gpt-oss": Case(
        "GptOssConfig",
        {
            **SIZES,
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": YARN,
        },
        "llama3",
    ),
    "deepseek v2": Case(
        "DeepseekV2Config", {**LATENT, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.0}, "gpt2"
    ),
    "deepseek v3": Case(
        "DeepseekV3Config",
        {**LATENT, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5, "rope_parameters": MSCALED},
        "gpt2",
    ),
    "phi 1, 2": Case("PhiConfig", {**SIZES, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}, "gpt2"),
    "phi 3": Case("Phi3Config", {**SIZES, "pad_token_id": 0}, "sentencepiece"),
    "phi 3 long": Case(
        "Phi3Config",
        {
            **SIZES,
            "pad_token_id": 0,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 256,  # llama.cpp chooses by the size of its context, at least 256
            "rope_parameters": LONG,
        },
        "sentencepiece",
    ),
    "phi 4": Case("Phi3Config", {**SIZES, "pad_token_id": 0}, "dbrx"),
    "gemma": Case("GemmaConfig", {**SIZES, "head_dim": 32}, "gemma"),
    "gemma 2": Case(
        "Gemma2Config", {**SIZES, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}, "gemma"
    ),
    "gemma 3": Case(
        "Gemma3TextConfig",
        {**SIZES, "head_dim": 32, "num_hidden_layers": 7, "query_pre_attn_scalar": 32, "sliding_window": 8},
        "gemma",
    ),
    "falcon 7b": Case("FalconConfig", {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, "gpt2"),
    "falcon 40b": Case(
        "FalconConfig",
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_size": 64,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
        "gpt2",
    ),
    "mpt": Case("MptConfig", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, "gpt2"),
    "olmo 2": Case("Olmo2Config", SIZES, "dbrx"),
    "granite": Case(
        "GraniteConfig",
        {
            **SIZES,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
        "digits",
    ),
    "smollm 3": Case("SmolLM3Config", {**SIZES, "num_hidden_layers": 5, "pad_token_id": 0}, "llama3"),
    "arcee": Case("ArceeConfig", SIZES),
    "bloom": Case("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4}, "gpt2"),
    "cohere, command-r": Case("CohereConfig", {**SIZES, "logit_scale": 0.25}),
    "cohere 2": Case(
        "Cohere2Config", {**SIZES, "num_hidden_layers": 5, "logit_scale": 0.25, "sliding_window": 8, "head_dim": 16}
    ),
    "ernie 4.5": Case("Ernie4_5Config", {**SIZES, "head_dim": 32}),
    "exaone 4": Case("Exaone4Config", {**SIZES, "sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "glm 4": Case("Glm4Config", {**SIZES, "head_dim": 16, "pad_token_id": 0}),
    "gpt-2": Case("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}, "gpt2"),
    "gpt-neox, pythia": Case("GPTNeoXConfig", {**SIZES, "num_key_value_heads": 4}, "gpt2"),
    "nemotron": Case("NemotronConfig", {**SIZES, "head_dim": 16}),
    "olmo": Case("OlmoConfig", SIZES, "gpt2"),
    "olmo 3": Case("Olmo3Config", {**SIZES, "num_hidden_layers": 5, "sliding_window": 8}, "dbrx"),
    "seed-oss": Case("SeedOssConfig", {**SIZES, "head_dim": 32}),
    "stablelm": Case("StableLmConfig", SIZES, "gpt2"),
    "starcoder 2": Case("Starcoder2Config", SIZES, "gpt2"),
    "dots 1": Case(
        "Dots1Config",
        {
            **ROUTED,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "layer_types": ["full_attention"] * 3,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
        },
        "qwen2",
    ),
    "ernie 4.5 moe": Case(
        "Ernie4_5_MoeConfig",
        {
            **SIZES,
            "moe_intermediate_size": 32,
            "moe_num_experts": 8,
            "moe_k": 2,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
    ),
    "glm 4.5": Case("Glm4MoeConfig", {**ROUTED, "head_dim": 16, "use_qk_norm": True, "pad_token_id": 0}),
    "hunyuan dense": Case("HunYuanDenseV1Config", {**SIZES, "head_dim": 16}),
    "jais 2": Case("Jais2Config", {**SIZES, "num_key_value_heads": 4, "head_dim": 16}),
    "starcoder": Case("GPTBigCodeConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}, "gpt2"),
    "minimax m2": Case(
        "MiniMaxM2Config", {**SIZES, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}, "gpt2"
    ),
    "mamba": Case("MambaConfig", STATES, "gpt2"),
    "falcon mamba": Case("FalconMambaConfig", STATES, "gpt2"),
    "mamba 2": Case(
        "Mamba2Config",
        {**STATES, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16, "rms_norm": True},
        "gpt2",
    ),
    "falcon h1": Case(
        "FalconH1Config",
        {
            **SIZES,
            **MAMBA2,
            "mamba_d_ssm": 128,
            "head_dim": 16,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 2.0,
            "key_multiplier": 0.7,
            "mlp_multipliers": [0.5, 1.5],
            "ssm_multipliers": [0.5, 0.8, 1.1, 1.2, 0.9],
            "attention_in_multiplier": 1.3,
            "attention_out_multiplier": 0.9,
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.8,
        },
        "gpt2",
    ),
    "lfm 2": Case("Lfm2Config", {**SIZES, "num_hidden_layers": 3, "layer_types": LFM2}),
    "lfm 2 moe": Case(
        "Lfm2MoeConfig",
        {**SIZES, **EXPERTS, "num_hidden_layers": 3, "num_experts": 4, "num_dense_layers": 1, "layer_types": LFM2},
    ),
    "granite 4 h": Case(
        "GraniteMoeHybridConfig",
        {
            **SIZES,
            **MAMBA2,
            **MULTIPLIED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "attention"],
        },
        "digits",
    ),
    "granite 4 h, dense": Case(
        "GraniteMoeHybridConfig",
        {
            **SIZES,
            **MAMBA2,
            **MULTIPLIED,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "attention"],
            "position_embedding_type": "rope",
        },
        "digits",
    ),
    "granite 4": Case(
        "GraniteMoeHybridConfig",
        {
            **SIZES,
            **MAMBA2,
            **MULTIPLIED,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 48,
            "layer_types": ["attention"] * 2,
            "position_embedding_type": "rope",
        },
        "digits",
    ),
    "granite moe shared": Case(
        "GraniteMoeSharedConfig",
        {**SIZES, **MULTIPLIED, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 48},
        "digits",
    ),
    "bamba": Case("BambaConfig", {**SIZES, **MAMBA2, "attn_layer_indices": [1]}),
    "jamba": Case(
        "JambaConfig",
        {
            **SIZES,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 16,
            "mamba_dt_rank": 4,
        },
        "sentencepiece",
    ),
    "nemotron h": Case("NemotronHConfig", {**NEMOTRON_H, "layers_block_type": ["mamba", "attention", "mlp"]}),
    "nemotron 3": Case(
        "NemotronHConfig",
        {
            **NEMOTRON_H,
            **EXPERTS,
            "layers_block_type": ["mamba", "attention", "moe"],
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 48,
            "routed_scaling_factor": 1.5,
        },
    ),
    "hunyuan a13b": Case("HunYuanMoEV1Config", {**SIZES, "head_dim": 16, "num_experts": 4, "moe_topk": [2, 2]}),
    "ministral 3": Case("Ministral3Config", {**SIZES, "head_dim": 16, "rope_parameters": MINISTRAL}),
    "qwen3 next": Case("Qwen3NextConfig", {**DELTA, **SHARED_EXPERT, "norm_topk_prob": True}, "qwen2"),
    "qwen 3.5": Case("Qwen3_5TextConfig", DELTA, "qwen35"),
    "qwen 3.5 moe": Case("Qwen3_5MoeTextConfig", {**DELTA, **SHARED_EXPERT}, "qwen35"),
    "afmoe, trinity": Case(
        "AfmoeConfig",
        {
            **SIZES,
            **EXPERTS,
            "num_hidden_layers": 5,
            "head_dim": 16,
            "num_experts": 4,
            "num_dense_layers": 1,
            "num_shared_experts": 2,
            "route_scale": 1.7,
            "sliding_window": 8,
            "mup_enabled": True,
        },
    ),
    "exaone moe": Case(
        "ExaoneMoeConfig",
        {
            **SIZES,
            **EXPERTS,
            "num_hidden_layers": 5,
            "head_dim": 16,
            "num_experts": 4,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.5,
            "sliding_window": 8,
        },
    ),
    "glm 4.7 flash": Case("Glm4MoeLiteConfig", {**LATENT, "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-6}),
    "youtu": Case("YoutuConfig", LATENT_DENSE),
    "minicpm 3": Case("MiniCPM3Config", {**LATENT_DENSE, "v_head_dim": 16, "rms_norm_eps": 1e-6}, "sentencepiece"),
    "internlm 3": Case("InternLM3Config", {**SIZES, "head_dim": 16}, "sentencepiece"),
    "helium": Case("HeliumConfig", {**SIZES, "head_dim": 16}, "sentencepiece"),
    "exaone": Case("ExaoneConfig", {**SIZES, "head_dim": 16}),
    "glm": Case("GlmConfig", {**SIZES, "head_dim": 16, "pad_token_id": 0}),
    "cwm": Case("CwmConfig", {**SIZES, **WINDOWED, "rope_parameters": {**LLAMA3}}),
    "ministral": Case("MinistralConfig", {**SIZES, **WINDOWED}),
    "solar open": Case("SolarOpenConfig", {**ROUTED, "first_k_dense_replace": 0, "head_dim": 16, "pad_token_id": 0}),
    "apertus": Case("ApertusConfig", {**SIZES, "rope_parameters": LLAMA3}),
    **{name: Case(*case) for name, case in NEWER.items()},
}


def takes_adapter(case: Case) -> bool:
    """Whether llama.cpp applies an adapter to all that `all-linear` names."""
    return not any(case.options.get(size) for size in WITHOUT_ADAPTER)
