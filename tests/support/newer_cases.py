"""Tiny models of families with many numbers of their own, as `tests.support.family_cases` has them."""

from __future__ import annotations

from typing import Any

_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
_SLIDING, _FULL = "sliding_attention", "full_attention"
# Where heads are wider than these, scores that nothing scales make much of what a table of GELU rounds.
_GEMMA4 = {
    **_HEADS, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "layer_types": [_SLIDING, _FULL],
    "head_dim": 8, "global_head_dim": 16, "sliding_window": 8, "hidden_size_per_layer_input": 0,
}  # fmt: skip
_ALIKE = {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "final_logit_softcapping": 30.0}
NEWER: dict[str, tuple[Any, ...]] = {
    "gemma 4": (
        "Gemma4TextConfig",
        {
            **_GEMMA4, "hidden_size": 192, "num_hidden_layers": 4, "layer_types": [_SLIDING, _FULL] * 2,
            "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": 700,
        },
        "gemma",
    ),
    "gemma 4 moe": (
        "Gemma4TextConfig",
        {
            **_GEMMA4, **_ALIKE, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
        "gemma",
    ),
    "llama 4": (
        "Llama4TextConfig",
        {
            **_HEADS, "hidden_size": 64, "intermediate_size": 48, "intermediate_size_mlp": 96, "num_hidden_layers": 5,
            "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
        },
        "llama3",
    ),
    "gemma 3n": (
        "Gemma3nTextConfig",
        {
            **_HEADS, "hidden_size": 128, "intermediate_size": 4096, "num_hidden_layers": 5, "head_dim": 8,
            "sliding_window": 8, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 700,
            "activation_sparsity_pattern": [0.95] * 5, "hidden_size_per_layer_input": 256,
        },
        "gemma",
        2.0,
    ),
    "dbrx": (
        "DbrxConfig",
        {
            "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 20000.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
        },
        "dbrx",
    ),
}  # fmt: skip
