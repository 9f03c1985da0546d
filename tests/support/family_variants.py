"""More of the families that nbtune writes: heads, biases, multipliers, rotary scaling, sizes that differ."""

from __future__ import annotations

from tests.support.family_cases import CASES, DELTA, LLAMA3, MAMBA2, NEMOTRON_H, SIZES, YARN, Case


def _other(name: str, **options: object) -> Case:
    """A case of the table with some options changed."""
    case = CASES[name]
    return Case(case.config, {**case.options, **options}, case.tokenizer)


TIED = (
    "qwen2 moe", "olmoe", "gpt-oss", "phi 1, 2", "olmo 2", "gpt-neox, pythia", "nemotron", "olmo 3", "stablelm",
    "dots 1", "minimax m2", "nemotron h", "nemotron 3", "falcon h1", "jamba", "bamba", "qwen3 next", "granite 4 h",
)  # fmt: skip
UNTIED = ("gpt-2", "starcoder 2", "mpt", "bloom", "mamba", "lfm 2")

VARIANTS = {
    **{f"{name}, tied": _other(name, tie_word_embeddings=True) for name in TIED},
    **{f"{name}, untied": _other(name, tie_word_embeddings=False) for name in UNTIED},
    **{
        f"{name}, yarn with its own factor": _other(name, rope_parameters={**YARN, "attention_factor": 0.9})
        for name in ("llama 2, codellama, yi", "qwen3", "gpt-oss", "cohere 2", "granite moe shared", "falcon h1")
    },
    "qwen3, yarn with two scales": _other("qwen3", rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 0.5}),
    "internlm 3, dynamic scaling": _other(
        "internlm 3",
        qkv_bias=True,
        bias=True,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 6.0},
    ),
    "hunyuan dense, scaled by alpha": _other(
        "hunyuan dense",
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 1000.0},
    ),
    "glm, biases": _other("glm", attention_bias=True),
    "arcee, llama 3's scaling": _other("arcee", rope_parameters=LLAMA3),
    "exaone 4, llama 3's scaling": _other("exaone 4", rope_parameters=LLAMA3),
    "granite 4, llama 3's scaling": _other("granite 4", rope_parameters=LLAMA3),
    "falcon, a key a query": _other("falcon 7b", multi_query=False),
    "starcoder, a key a query": _other("starcoder", multi_query=False),
    "falcon h1, normed states of two groups": Case(
        "FalconH1Config",
        {
            **SIZES, **MAMBA2, "mamba_d_ssm": 128, "mamba_n_groups": 2, "head_dim": 32, "mamba_rms_norm": True,
            "mamba_norm_before_gate": False, "key_multiplier": 0.3, "attention_in_multiplier": 0.6,
        },
        "gpt2",
    ),
    "lfm 2, of two kinds in another order": _other("lfm 2", layer_types=["full_attention", "conv", "full_attention"]),
    "granite 4, experts and no states": Case(
        "GraniteMoeHybridConfig",
        {
            **SIZES, **MAMBA2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 48,
            "layer_types": ["attention"] * 2, "position_embedding_type": "rope", "attention_multiplier": 0.1,
            "logits_scaling": 5.0,
        },
        "digits",
    ),
    "jamba without experts": _other("jamba", num_experts=1, num_experts_per_tok=1),
    "nemotron h, other order": Case(
        "NemotronHConfig",
        {
            **NEMOTRON_H, "num_hidden_layers": 4, "n_groups": 4,
            "layers_block_type": ["mlp", "mamba", "mlp", "attention"],
        },
    ),
    "nemotron 3, latent experts": _other("nemotron 3", moe_latent_size=32, n_shared_experts=1),
    "qwen3 next, a key a value": Case(
        "Qwen3NextConfig",
        {**CASES["qwen3 next"].options, "linear_num_key_heads": 4, "linear_conv_kernel_dim": 3},
        "qwen2",
    ),
    "qwen 3.5, three values a key, other order": Case(
        "Qwen3_5TextConfig",
        {
            **DELTA, "num_hidden_layers": 3, "linear_num_value_heads": 6,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
        },
        "qwen35",
    ),
    "ministral 3, yarn of 8": _other(
        "ministral 3",
        rope_parameters={**YARN, "factor": 8.0, "mscale": 0.5, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.3},
    ),
    "gemma 4 moe, dense": _other("gemma 4 moe", enable_moe_block=False),
    "gemma 4 moe, keys and values apart": _other("gemma 4 moe", attention_k_eq_v=False, final_logit_softcapping=None),
    "gemma 4 moe, untied": _other("gemma 4 moe", tie_word_embeddings=False, num_key_value_heads=1),
    "gemma 4 moe, all of a head turned": _other(
        "gemma 4 moe",
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "gemma 4, keys of no other's": _other(
        "gemma 4",
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
        use_double_wide_mlp=False,
    ),
    "llama 4, two experts, all with them": _other("llama 4", num_experts_per_tok=2, interleave_moe_layer_step=1),
    "llama 4, tied, llama 3's scaling": _other("llama 4", tie_word_embeddings=True, rope_parameters=LLAMA3),
    "llama 4, unnormed": _other(
        "llama 4", num_local_experts=128, use_qk_norm=False, num_key_value_heads=1, num_hidden_layers=4
    ),
    "apertus, yarn, tied": _other("apertus", rope_parameters=YARN, tie_word_embeddings=True, num_key_value_heads=1),
    "dbrx, as wide as its experts": Case(
        "DbrxConfig",
        {
            "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 1, "hidden_size": 64},
        },
        "dbrx",
    ),
    "olmoe, of its class's width": Case(
        "OlmoeConfig", {k: one for k, one in CASES["olmoe"].options.items() if k != "intermediate_size"}, "dbrx"
    ),
}  # fmt: skip
