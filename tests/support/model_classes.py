"""Tiny random models of transformers' own config classes, one table for every test that goes through families.

    model = make("gemma2")           # weights that matter, norms that are no ones, biases that are no zeros
    folder = save("gemma2", tmp)     # the same as transformers saves it

Rows beyond `WINDOW` tokens reach beyond every window of the table, rows of `SHORT` stay within.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

WINDOW, SHORT, LONG = 8, 6, 21
"""Tokens: every window of the table; a row within it; a row beyond it."""

VOCABULARY = 96


@dataclasses.dataclass(frozen=True)
class ModelClass:
    """A model: its `model_type`, and the config's fields beyond the size of its vocabulary.

    Args:
        kind: transformers' `model_type`, of whose config class an instance is made.
        options: the config's fields.
        leaks: documents of a pack see each other in it, whatever positions say: packing is refused.
        by_longest: its rotary angles are chosen by the longest row of a batch, or of a pack, for all of its rows.
    """

    kind: str
    options: dict[str, Any]
    leaks: bool = False
    by_longest: bool = False


def _of(kind: str, *parts: dict[str, Any], leaks: bool = False, by_longest: bool = False, **options: Any) -> ModelClass:
    fields = {name: value for part in (*parts, options) for name, value in part.items()}
    return ModelClass(kind, fields, leaks, by_longest)


_WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 256}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_WIDTHS, **_SPECIAL, "num_hidden_layers": 2, "num_key_value_heads": 2}
_WINDOWS = {"sliding_window": WINDOW}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
_GPT2 = {**_SPECIAL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
_UNDROPPED = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [1.0, 1.5, 2.0, 3.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3], "original_max_position_embeddings": 16,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_MIXED = {**_GROUPED, **_WINDOWS, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA = {**_GROUPED, **_WINDOWS, "head_dim": 16, "query_pre_attn_scalar": 24}
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_MULTIPLIED = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
}  # fmt: skip
_FALCON = {**_SPECIAL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_MAMBA1 = {**_SPECIAL, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "time_step_rank": 4}

# fmt: off
CLASSES: dict[str, ModelClass] = {
    "llama": _of("llama", _GROUPED),
    "llama, tied": _of("llama", _GROUPED, tie_word_embeddings=True),
    "llama, biases": _of("llama", _GROUPED, attention_bias=True, mlp_bias=True),
    "llama, wide heads": _of("llama", _GROUPED, head_dim=16),
    "llama, scaled rotary": _of("llama", _GROUPED, rope_parameters=_LLAMA3),
    "llama, yarn": _of("llama", _GROUPED, rope_parameters=_YARN),
    "mistral": _of("mistral", _GROUPED, _WINDOWS, head_dim=16),
    "ministral": _of("ministral", _MIXED, head_dim=16),
    "cwm": _of("cwm", _MIXED, head_dim=16, rope_parameters=_LLAMA3),
    "exaone": _of("exaone", _GROUPED, tie_word_embeddings=True),
    "ministral3": _of("ministral3", _GROUPED, head_dim=16),
    "mixtral": _of("mixtral", _GROUPED, _WINDOWS, _LOCAL, router_jitter_noise=0.0),
    "qwen2": _of("qwen2", _GROUPED),
    "qwen2, windows": _of("qwen2", _GROUPED, _WINDOWS, use_sliding_window=True, max_window_layers=1),
    "qwen3": _of("qwen3", _GROUPED, head_dim=16, tie_word_embeddings=True),
    "qwen2_moe": _of("qwen2_moe", _GROUPED, _EXPERTS, shared_expert_intermediate_size=24),
    "qwen3_moe": _of("qwen3_moe", _GROUPED, _EXPERTS, head_dim=16, norm_topk_prob=True),
    "qwen3_next": _of(
        "qwen3_next", _GROUPED, _EXPERTS, _DELTA, head_dim=16, shared_expert_intermediate_size=24, leaks=True,
    ),
    "qwen3_5_text": _of("qwen3_5_text", _GROUPED, _DELTA, head_dim=16, leaks=True),
    "gemma": _of("gemma", _GROUPED, head_dim=16),
    "gemma2": _of("gemma2", _GEMMA, final_logit_softcapping=3.0, attn_logit_softcapping=2.0),
    "gemma3_text": _of("gemma3_text", _GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "gemma3n_text": _of(
        "gemma3n_text", _GROUPED, _WINDOWS, head_dim=16, num_hidden_layers=4, intermediate_size=[48] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8, laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gemma4_text": _of(
        "gemma4_text", _MIXED, head_dim=16, global_head_dim=16, vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
    ),
    "gemma4_text, shared keys": _of(
        "gemma4_text", _WINDOWS, _GROUPED, head_dim=4, global_head_dim=8, vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8, num_hidden_layers=4, num_kv_shared_layers=2, use_double_wide_mlp=True,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "gemma4_text, experts": _of(
        "gemma4_text", _MIXED, head_dim=8, global_head_dim=16, hidden_size_per_layer_input=0, attention_k_eq_v=True,
        num_global_key_value_heads=1, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=24,
        final_logit_softcapping=3.0,
    ),
    "vaultgemma": _of("vaultgemma", _GEMMA),
    "phi": _of("phi", _GROUPED, _UNDROPPED, rope_parameters=_PARTIAL),
    "phi3": _of("phi3", _GROUPED, _UNDROPPED, _WINDOWS),
    "phi3, partial rotary": _of("phi3", _GROUPED, _UNDROPPED, rope_parameters=_PARTIAL),
    "phi3, long rotary": _of(
        "phi3", _GROUPED, _UNDROPPED, original_max_position_embeddings=16, rope_parameters=_LONG_ROPE, by_longest=True,
    ),
    "phimoe": _of(
        "phimoe", _GROUPED, _WINDOWS, _LOCAL, router_jitter_noise=0.0, input_jitter_noise=0.0, lm_head_bias=True,
        attention_bias=True,
    ),
    "olmo": _of("olmo", _GROUPED, clip_qkv=1.0),
    "olmo2": _of("olmo2", _GROUPED),
    "olmo3": _of("olmo3", _MIXED),
    "olmoe": _of("olmoe", _GROUPED, num_experts=4, num_experts_per_tok=2),
    "olmo_hybrid": _of(
        "olmo_hybrid", _GROUPED, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"], leaks=True,
    ),
    "flex_olmo": _of("flex_olmo", _GROUPED, num_experts=4, num_experts_per_tok=2),
    "granite": _of("granite", _GROUPED, _MULTIPLIED),
    "granitemoe": _of("granitemoe", _GROUPED, _LOCAL, _MULTIPLIED),
    "granitemoeshared": _of("granitemoeshared", _GROUPED, _LOCAL, shared_intermediate_size=24, logits_scaling=2.0),
    "granitemoehybrid": _of(
        "granitemoehybrid", _GROUPED, _LOCAL, _MAMBA2, layer_types=["mamba", "attention"], logits_scaling=2.0,
        shared_intermediate_size=24, leaks=True,
    ),
    "starcoder2": _of("starcoder2", _GROUPED, _WINDOWS, residual_dropout=0.0, embedding_dropout=0.0, use_bias=True),
    "stablelm": _of(
        "stablelm", _GROUPED, rope_parameters={**_PARTIAL, "partial_rotary_factor": 0.25}, use_qkv_bias=True,
    ),
    "stablelm, parallel": _of("stablelm", _GROUPED, use_parallel_residual=True, qk_layernorm=True),
    "cohere": _of("cohere", _GROUPED, logit_scale=0.25, use_qk_norm=True),
    "cohere2": _of("cohere2", _MIXED, logit_scale=0.25),
    "falcon": _of("falcon", _FALCON),
    "falcon, grouped": _of("falcon", _FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon, alibi": _of("falcon", _FALCON, alibi=True, parallel_attn=False, bias=True),
    "falcon_h1": _of(
        "falcon_h1", _GROUPED, _MAMBA2, mamba_d_ssm=64, head_dim=16, lm_head_multiplier=0.5, embedding_multiplier=2.0,
        key_multiplier=0.7, mlp_multipliers=[0.5, 1.5], ssm_multipliers=[0.5, 0.8, 1.1, 1.2, 0.9], leaks=True,
    ),
    "gpt_neox": _of(
        "gpt_neox", _WIDTHS, _SPECIAL, num_hidden_layers=2,
        rope_parameters={**_PARTIAL, "partial_rotary_factor": 0.25},
    ),
    "gpt_neox, sequential": _of("gpt_neox", _WIDTHS, _SPECIAL, num_hidden_layers=2, use_parallel_residual=False),
    "gpt_neo": _of(
        "gpt_neo", _SPECIAL, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=WINDOW, max_position_embeddings=256,
    ),
    "gpt2": _of("gpt2", _GPT2, _UNDROPPED),
    "gpt_bigcode": _of("gpt_bigcode", _GPT2, _UNDROPPED, multi_query=True),
    "gptj": _of("gptj", _GPT2, _UNDROPPED, rotary_dim=4),
    "codegen": _of("codegen", _GPT2, _UNDROPPED, rotary_dim=4),
    "mpt": _of("mpt", _SPECIAL, d_model=32, n_heads=4, n_layers=2, max_seq_len=256, expansion_ratio=2),
    "bloom": _of("bloom", _SPECIAL, hidden_size=32, n_head=4, n_layer=2),
    "opt": _of(
        "opt", _SPECIAL, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=32, dropout=0.0,
    ),
    "biogpt": _of(
        "biogpt", _WIDTHS, _SPECIAL, num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ),
    "xglm": _of(
        "xglm", _SPECIAL, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, max_position_embeddings=256,
        dropout=0.0, attention_dropout=0.0,
    ),
    "nemotron": _of("nemotron", _GROUPED, rope_parameters=_PARTIAL),
    "persimmon": _of("persimmon", _WIDTHS, _SPECIAL, num_hidden_layers=2),
    "glm": _of("glm", _GROUPED, head_dim=16),
    "glm4": _of("glm4", _GROUPED, head_dim=16),
    "glm4_moe": _of(
        "glm4_moe", _GROUPED, head_dim=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        first_k_dense_replace=1, n_group=1, topk_group=1, use_qk_norm=True,
    ),
    "deepseek_v2": _of("deepseek_v2", _GROUPED, _LATENT, _ROUTED, n_group=2, topk_method="group_limited_greedy"),
    "deepseek_v3": _of("deepseek_v3", _GROUPED, _LATENT, _ROUTED, n_group=2),
    "dots1": _of("dots1", _GROUPED, _WINDOWS, _ROUTED, head_dim=16),
    "gpt_oss": _of("gpt_oss", _MIXED, _LOCAL, head_dim=16, rope_parameters=_YARN, leaks=True),
    "llama4_text": _of(
        "llama4_text", _GROUPED, head_dim=16, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1,
        attention_chunk_size=WINDOW, layer_types=["chunked_attention", "full_attention"], no_rope_layers=[1, 0],
        moe_layers=[1], use_qk_norm=True,
    ),
    "mamba": _of("mamba", _MAMBA1, leaks=True),
    "mamba2": _of(
        "mamba2", _SPECIAL, hidden_size=32, state_size=8, num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=1,
        chunk_size=16, leaks=True,
    ),
    "falcon_mamba": _of("falcon_mamba", _MAMBA1, leaks=True),
    "jamba": _of(
        "jamba", _GROUPED, num_experts=4, num_experts_per_tok=2, expert_layer_period=2, expert_layer_offset=1,
        attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, leaks=True,
    ),
    "bamba": _of("bamba", _GROUPED, _MAMBA2, attn_layer_indices=[1], leaks=True),
    "zamba": _of(
        "zamba", _GROUPED, num_hidden_layers=5,
        layers_block_type=["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
        mamba_d_state=8, mamba_dt_rank=4, n_mamba_heads=2, num_key_value_heads=4, leaks=True,
    ),
    "zamba2": _of(
        "zamba2", _GROUPED, num_hidden_layers=3, num_key_value_heads=4, mamba_d_state=8, n_mamba_heads=8,
        mamba_headdim=8, mamba_ngroups=1, chunk_size=16, num_mem_blocks=1, hybrid_layer_ids=[1],
        layers_block_type=["mamba", "hybrid", "mamba"], adapter_rank=4, leaks=True,
    ),
    "nemotron_h": _of(
        "nemotron_h", _GROUPED, head_dim=8, layers_block_type=["mamba", "attention"], ssm_state_size=8,
        mamba_num_heads=8, mamba_head_dim=8, n_groups=1, chunk_size=16, leaks=True,
    ),
    "lfm2": _of("lfm2", _GROUPED, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False, leaks=True),
    "lfm2_moe": _of(
        "lfm2_moe", _GROUPED, _EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1, leaks=True,
    ),
    "recurrent_gemma": _of(
        "recurrent_gemma", _GROUPED, lru_width=32, attention_window_size=WINDOW,
        block_types=["recurrent", "attention"], num_hidden_layers=2, leaks=True,
    ),
    "minimax": _of(
        "minimax", _GROUPED, _LOCAL, head_dim=16, layer_types=["linear_attention", "full_attention"], block_size=8,
        leaks=True,
    ),
    "minimax_m2": _of("minimax_m2", _GROUPED, _LOCAL, head_dim=16),
    "smollm3": _of("smollm3", _GROUPED, num_hidden_layers=4),
    "exaone4": _of("exaone4", _MIXED),
    "ernie4_5": _of("ernie4_5", _GROUPED, head_dim=16),
    "ernie4_5_moe": _of(
        "ernie4_5_moe", _GROUPED, moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_start_index=1,
    ),
    "hunyuan_v1_dense": _of("hunyuan_v1_dense", _GROUPED, head_dim=16),
    "hunyuan_v1_moe": _of("hunyuan_v1_moe", _GROUPED, head_dim=16, num_experts=4, moe_topk=[2, 2]),
    "helium": _of("helium", _GROUPED, head_dim=8),
    "arcee": _of("arcee", _GROUPED),
    "apertus": _of("apertus", _GROUPED),
    "seed_oss": _of("seed_oss", _GROUPED, head_dim=16, residual_dropout=0.0, attention_dropout=0.0),
    "nanochat": _of("nanochat", _GROUPED),
    "internlm3": _of("internlm3", _GROUPED, head_dim=16),
    "bitnet": _of("bitnet", _GROUPED),
    "jetmoe": _of("jetmoe", _GROUPED, kv_channels=8, num_local_experts=4, num_experts_per_tok=2),
    "dbrx": _of(
        "dbrx", _SPECIAL, d_model=32, n_heads=4, n_layers=2, max_seq_len=256,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    "minicpm3": _of(
        "minicpm3", _GROUPED, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
        num_key_value_heads=4, scale_emb=2, scale_depth=1.4, dim_model_base=16,
    ),
    "afmoe": _of("afmoe", _GROUPED, _WINDOWS, _EXPERTS, head_dim=16, num_dense_layers=1, leaks=True),
    "doge": _of("doge", _GROUPED, hidden_dropout=0.0),
    "rwkv": _of(
        "rwkv", _SPECIAL, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, context_length=256,
        leaks=True,
    ),
}
# fmt: on


def config_of(name: str) -> Any:
    """The config of a row of the table; the test is skipped where this transformers does not have its class."""
    import pytest
    from transformers import CONFIG_MAPPING, AutoConfig

    row = CLASSES[name]
    if row.kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {row.kind}")
    return AutoConfig.for_model(row.kind, **row.options, vocab_size=VOCABULARY)


def make(name: str, *, seed: int = 0) -> Any:
    """A model in fp32 whose weights matter: attention that looks somewhere, norms that are no ones."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(name), dtype=torch.float32)
    with torch.no_grad():
        for at, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif not at.endswith("A_log"):
                spread = 0.5 if "embed" in at else 1.3 * parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn_like(parameter) * spread)
    return model


def save(name: str, folder: Path, *, seed: int = 0) -> Path:
    """The model of `make` as transformers saves it."""
    make(name, seed=seed).save_pretrained(folder)
    return folder
