"""Configs of real classes that few models have say what stock says: odd numbers of heads and sizes, windows of two and
three tokens, kinds of layers in another order, scalings of angles, clips, caps and multipliers together."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbtune.models import model_facts
from tests.models.test_model_classes import as_stock
from tests.support.model_classes import (
    _DELTA,
    _EXPERTS,
    _FALCON,
    _GEMMA,
    _GPT2,
    _GROUPED,
    _LATENT,
    _LLAMA3,
    _LOCAL,
    _MAMBA1,
    _MAMBA2,
    _MIXED,
    _MULTIPLIED,
    _PARTIAL,
    _ROUTED,
    _SPECIAL,
    _UNDROPPED,
    _WIDTHS,
    _YARN,
    CLASSES,
    VOCABULARY,
    ModelClass,
    _of,
)
from tests.support.run_alike import both, rows

W3 = {"sliding_window": 3}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LENGTHS = [6, 21, 13, 2, 3]
ALONE = [8, 24, 16]  # where the longest row chooses the angles, one that is padded counts as long as that

# fmt: off
ODD: dict[str, ModelClass] = {
    "mistral w3": _of("mistral", _GROUPED, W3),
    "mistral w2 kv1": _of("mistral", _GROUPED, num_key_value_heads=1, sliding_window=2),
    "mistral yarn w3 hd12": _of("mistral", _GROUPED, W3, head_dim=12, rope_parameters=_YARN),
    "llama kv1 hd20 tied": _of("llama", _GROUPED, num_key_value_heads=1, head_dim=20, tie_word_embeddings=True),
    "llama kv4 linear": _of("llama", _GROUPED, num_key_value_heads=4, rope_parameters=LINEAR),
    "llama dynamic": _of("llama", _GROUPED, rope_parameters={**DYNAMIC, "original_max_position_embeddings": 64}),
    "llama dynamic short": _of("llama", _GROUPED, max_position_embeddings=16, rope_parameters=DYNAMIC, by_longest=True),
    "llama partial": _of("llama", _GROUPED, head_dim=16, rope_parameters=_PARTIAL),
    "llama yarn mscale": _of(
        "llama", _GROUPED,
        rope_parameters={**_YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "beta_fast": 16, "beta_slow": 2},
    ),
    "llama yarn attnfactor": _of(
        "llama", _GROUPED, rope_parameters={**_YARN, "attention_factor": 1.3, "truncate": False},
    ),
    "llama gelu": _of("llama", _GROUPED, hidden_act="gelu", rms_norm_eps=0.3),
    "llama relu2 1 layer": _of("llama", _GROUPED, hidden_act="relu2", num_hidden_layers=1),
    "llama pretraining_tp": _of("llama", _GROUPED, pretraining_tp=2),
    "phi3 w3 kv1": _of("phi3", _GROUPED, _UNDROPPED, W3, num_key_value_heads=1),
    "qwen2 w all": _of("qwen2", _GROUPED, W3, use_sliding_window=True, max_window_layers=0),
    "qwen2 layer types": _of(
        "qwen2", _GROUPED, W3, use_sliding_window=True, num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3 kv1 w": _of(
        "qwen3", _GROUPED, W3, num_key_value_heads=1, head_dim=12, attention_bias=True, use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "qwen3_moe mixed sparse": _of(
        "qwen3_moe", _GROUPED, _EXPERTS, head_dim=16, norm_topk_prob=False, decoder_sparse_step=2,
        num_hidden_layers=3,
    ),
    "qwen3_moe mlp only": _of("qwen3_moe", _GROUPED, _EXPERTS, head_dim=16, mlp_only_layers=[0], attention_bias=True),
    "qwen3_moe k=all": _of("qwen3_moe", _GROUPED, _EXPERTS, num_experts_per_tok=4, norm_topk_prob=True),
    "qwen2_moe w shared": _of(
        "qwen2_moe", _GROUPED, _EXPERTS, W3, shared_expert_intermediate_size=40, norm_topk_prob=True,
        use_sliding_window=True, max_window_layers=1,
    ),
    "gemma2 w3 tied kv1": _of(
        "gemma2", _GEMMA, W3, num_key_value_heads=1, final_logit_softcapping=2.0, attn_logit_softcapping=None,
    ),
    "gemma2 no final": _of(
        "gemma2", _GEMMA, W3, final_logit_softcapping=None, attn_logit_softcapping=1.0, num_hidden_layers=3,
        attention_bias=True,
    ),
    "gemma2 untied": _of("gemma2", _GEMMA, W3, tie_word_embeddings=False, final_logit_softcapping=2.0),
    "gemma3 caps": _of(
        "gemma3_text", _GEMMA, W3, layer_types=["full_attention", "sliding_attention"], final_logit_softcapping=2.0,
        attn_logit_softcapping=1.5,
    ),
    "gemma3 ropes": _of(
        "gemma3_text", _GEMMA, W3, num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": LINEAR},
    ),
    "gemma3 yarn full": _of(
        "gemma3_text", _GEMMA, W3, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": _YARN},
    ),
    "olmo3 yarn": _of(
        "olmo3", _GROUPED, W3, layer_types=["sliding_attention", "full_attention"], rope_parameters=_YARN,
        num_key_value_heads=1,
    ),
    "olmo2 bias": _of("olmo2", _GROUPED, attention_bias=True, num_key_value_heads=1, tie_word_embeddings=True),
    "olmoe clip norm": _of("olmoe", _GROUPED, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, clip_qkv=0.5),
    "granite tied": _of(
        "granite", _GROUPED, _MULTIPLIED, tie_word_embeddings=True, logits_scaling=0.3, residual_multiplier=-0.7,
        attention_bias=True, mlp_bias=True,
    ),
    "granite shared nope": _of(
        "granitemoehybrid", _GROUPED, _MAMBA2, _LOCAL, _MULTIPLIED, layer_types=["attention", "attention"],
        shared_intermediate_size=24, position_embedding_type="nope", leaks=True,
    ),
    "granite hybrid no experts": _of(
        "granitemoehybrid", _GROUPED, _MAMBA2, _MULTIPLIED, num_local_experts=0, layer_types=["attention", "mamba"],
        shared_intermediate_size=24, leaks=True,
    ),
    "granite hybrid attention only, dense": _of(
        "granitemoehybrid", _GROUPED, _MAMBA2, _MULTIPLIED, num_local_experts=0,
        layer_types=["attention", "attention"], shared_intermediate_size=24, position_embedding_type="rope",
    ),
    "cohere nonorm scale tied": _of("cohere", _GROUPED, logit_scale=3.0, attention_bias=True, num_key_value_heads=1),
    "cohere2 w3": _of(
        "cohere2", _GROUPED, W3, layer_types=["full_attention", "sliding_attention"], logit_scale=0.5,
        attention_bias=True,
    ),
    "stablelm par": _of(
        "stablelm", _GROUPED, use_parallel_residual=True, use_qkv_bias=True, num_key_value_heads=1,
        rope_parameters={**_PARTIAL, "partial_rotary_factor": 1.0},
    ),
    "gpt_neox bias": _of(
        "gpt_neox", _WIDTHS, _SPECIAL, num_hidden_layers=2, attention_bias=False, tie_word_embeddings=True,
        rope_parameters={**_PARTIAL, "partial_rotary_factor": 1.0},
    ),
    "gpt_neox linear": _of(
        "gpt_neox", _WIDTHS, _SPECIAL, num_hidden_layers=2, rope_parameters={**LINEAR, "partial_rotary_factor": 0.5},
        hidden_act="gelu_fast",
    ),
    "falcon new two ln": _of(
        "falcon", _FALCON, new_decoder_architecture=True, num_kv_heads=1, num_ln_in_parallel_attn=2, bias=True,
    ),
    "falcon new one ln": _of(
        "falcon", _FALCON, new_decoder_architecture=True, num_kv_heads=4, num_ln_in_parallel_attn=1,
    ),
    "falcon rw seq": _of("falcon", _FALCON, alibi=False, parallel_attn=False, multi_query=False, bias=True),
    "falcon alibi par": _of("falcon", _FALCON, alibi=True, parallel_attn=True, multi_query=True),
    "falcon ffn": _of("falcon", _FALCON, ffn_hidden_size=40, activation="relu"),
    "bloom post": _of(
        "bloom", _SPECIAL, hidden_size=36, n_head=3, n_layer=2, apply_residual_connection_post_layernorm=True,
        leaks=True,
    ),
    "mpt 3 heads": _of(
        "mpt", _SPECIAL, d_model=36, n_heads=3, n_layers=2, max_seq_len=64, expansion_ratio=2,
        attn_config={"alibi_bias_max": 4, "clip_qkv": 0.7, "softmax_scale": 0.3}, leaks=True,
    ),
    "mpt noalibi": _of(
        "mpt", _SPECIAL, d_model=32, n_heads=4, n_layers=2, max_seq_len=256, expansion_ratio=2,
        attn_config={"alibi": False},
    ),
    "gpt2 scaled": _of(
        "gpt2", _GPT2, _UNDROPPED, scale_attn_by_inverse_layer_idx=True, n_inner=40, activation_function="relu",
    ),
    "gpt2 noscale": _of("gpt2", _GPT2, _UNDROPPED, scale_attn_weights=False, tie_word_embeddings=False),
    "gpt2 reorder": _of("gpt2", _GPT2, _UNDROPPED, reorder_and_upcast_attn=True),
    "gpt_bigcode mha": _of("gpt_bigcode", _GPT2, _UNDROPPED, multi_query=False, scale_attn_weights=False),
    "opt post": _of(
        "opt", _SPECIAL, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=16, dropout=0.0, do_layer_norm_before=False, leaks=True,
    ),
    "opt nobias": _of(
        "opt", _SPECIAL, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=32, dropout=0.0, enable_bias=False,
        layer_norm_elementwise_affine=False,
    ),
    "phi qkln": _of(
        "phi", _GROUPED, _UNDROPPED, qk_layernorm=True, num_key_value_heads=1,
        rope_parameters={**_YARN, "partial_rotary_factor": 0.5},
    ),
    "starcoder2 nobias": _of(
        "starcoder2", _GROUPED, W3, residual_dropout=0.0, embedding_dropout=0.0, use_bias=False,
        tie_word_embeddings=False,
    ),
    "nemotron": _of(
        "nemotron", _GROUPED, attention_bias=True, mlp_bias=True, head_dim=12,
        rope_parameters={**_PARTIAL, "partial_rotary_factor": 1.0},
    ),
    "glm partial": _of(
        "glm4", _GROUPED, head_dim=16, num_key_value_heads=1, attention_bias=True,
        rope_parameters={**_PARTIAL, "partial_rotary_factor": 0.25},
    ),
    "deepseek_v3 lowrank none": _of(
        "deepseek_v3", _GROUPED, {**_LATENT, "q_lora_rank": None}, _ROUTED, n_group=2, norm_topk_prob=False,
        routed_scaling_factor=2.5, rope_interleave=False,
    ),
    "deepseek_v3 yarn": _of(
        "deepseek_v3", _GROUPED, _LATENT, _ROUTED, n_group=2,
        rope_parameters={**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, attention_bias=True,
    ),
    "deepseek_v2 greedy": _of(
        "deepseek_v2", _GROUPED, {**_LATENT, "q_lora_rank": None, "v_head_dim": 12}, _ROUTED, topk_method="greedy",
        norm_topk_prob=True, routed_scaling_factor=2.0,
    ),
    "gpt_oss w3": _of(
        "gpt_oss", _GROUPED, W3, _LOCAL, head_dim=16, layer_types=["full_attention", "sliding_attention"], leaks=True,
    ),
    "llama4 nope chunk3": _of(
        "llama4_text", _GROUPED, head_dim=16, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1,
        attention_chunk_size=3, layer_types=["chunked_attention", "full_attention"], no_rope_layers=[1, 0],
        moe_layers=[0], use_qk_norm=False, attn_temperature_tuning=True, floor_scale=4, attn_scale=0.3, leaks=True,
    ),
    "smollm3 w": _of(
        "smollm3", _GROUPED, W3, num_hidden_layers=4, use_sliding_window=True, max_window_layers=2,
        no_rope_layers=[0, 1, 1, 0],
        layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    ),
    "exaone4 w3": _of(
        "exaone4", _GROUPED, W3, layer_types=["sliding_attention", "full_attention"], num_key_value_heads=1,
        rope_parameters=_LLAMA3,
    ),
    "seed_oss qbias": _of(
        "seed_oss", _GROUPED, head_dim=12, residual_dropout=0.0, attention_dropout=0.0, attention_bias=True,
        attention_out_bias=True, mlp_bias=True,
    ),
    "mixtral k1": _of(
        "mixtral", _GROUPED, W3, _LOCAL, num_experts_per_tok=1, router_jitter_noise=0.0, tie_word_embeddings=True,
    ),
    "jamba padded": _of(
        "jamba", _GROUPED, num_experts=4, num_experts_per_tok=1, expert_layer_period=1, expert_layer_offset=0,
        attn_layer_period=2, attn_layer_offset=0, mamba_d_state=8, mamba_dt_rank=4, mamba_conv_bias=False,
        mamba_proj_bias=True, leaks=True,
    ),
    "bamba": _of("bamba", _GROUPED, _MAMBA2, attn_layer_indices=[0], attention_bias=True, mlp_bias=True, leaks=True),
    "falcon_h1": _of(
        "falcon_h1", _GROUPED, _MAMBA2, mamba_d_ssm=64, head_dim=16, mamba_rms_norm=True,
        mamba_norm_before_gate=False, attention_in_multiplier=0.4, attention_out_multiplier=1.7,
        ssm_in_multiplier=0.6, ssm_out_multiplier=1.4, tie_word_embeddings=True, lm_head_multiplier=0.2, leaks=True,
    ),
    "lfm2 order": _of(
        "lfm2", _GROUPED, layer_types=["full_attention", "conv"], conv_L_cache=2, conv_bias=True,
        block_auto_adjust_ff_dim=True, leaks=True,
    ),
    "minicpm3": _of(
        "minicpm3", _GROUPED, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=12,
        num_key_value_heads=4, scale_emb=5, scale_depth=0.4, dim_model_base=7, tie_word_embeddings=True,
    ),
    "ernie moe": _of(
        "ernie4_5_moe", _GROUPED, moe_num_experts=4, moe_k=3, moe_intermediate_size=24, moe_layer_start_index=0,
        moe_num_shared_experts=0, use_bias=True,
    ),
    "glm4_moe sh": _of(
        "glm4_moe", _GROUPED, head_dim=16, n_routed_experts=4, num_experts_per_tok=3, moe_intermediate_size=24,
        first_k_dense_replace=0, n_group=2, topk_group=1, n_shared_experts=2, norm_topk_prob=False,
        routed_scaling_factor=1.7, attention_bias=True,
    ),
    "dots1 w3": _of(
        "dots1", _GROUPED, W3, _ROUTED, head_dim=16, layer_types=["sliding_attention", "full_attention"],
        num_key_value_heads=1,
    ),
    "hunyuan alpha": _of(
        "hunyuan_v1_dense", _GROUPED, head_dim=16,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0},
    ),
    "apertus": _of(
        "apertus", _GROUPED, num_key_value_heads=1, attention_bias=True, rope_parameters=_LLAMA3,
        tie_word_embeddings=True,
    ),
    "arcee": _of("arcee", _GROUPED, attention_bias=True, mlp_bias=True, head_dim=12, rope_parameters=_YARN),
    "persimmon": _of(
        "persimmon", _WIDTHS, _SPECIAL, num_hidden_layers=2, qk_layernorm=False,
        rope_parameters={**_PARTIAL, "partial_rotary_factor": 0.25},
    ),
    "olmo clip": _of(
        "olmo", _GROUPED, clip_qkv=0.3, attention_bias=True, tie_word_embeddings=True, num_key_value_heads=1,
    ),
    "helium": _of("helium", _GROUPED, head_dim=8, attention_bias=True, mlp_bias=True, num_key_value_heads=1),
    "nanochat": _of("nanochat", _GROUPED, num_key_value_heads=1, final_logit_softcapping=2.0),
    "vaultgemma": _of(
        "vaultgemma", _GEMMA, W3, final_logit_softcapping=2.0, attn_logit_softcapping=1.0, num_key_value_heads=1,
    ),
    "cwm w3": _of(
        "cwm", _GROUPED, W3, layer_types=["full_attention", "sliding_attention"], head_dim=12,
        rope_parameters=_LLAMA3, tie_word_embeddings=True,
    ),
    "phimoe": _of(
        "phimoe", _GROUPED, W3, _LOCAL, router_jitter_noise=0.0, input_jitter_noise=0.0, lm_head_bias=False,
        tie_word_embeddings=True,
    ),
    "gptj": _of("gptj", {**_GPT2}, _UNDROPPED, rotary_dim=8, n_inner=40, tie_word_embeddings=False),
    "codegen": _of("codegen", _GPT2, _UNDROPPED, rotary_dim=2),
    "gpt_neo": _of(
        "gpt_neo", _SPECIAL, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["local"], 2]],
        window_size=3, max_position_embeddings=256,
    ),
    "mamba2": _of(
        "mamba2", _SPECIAL, hidden_size=32, state_size=8, num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=2,
        chunk_size=4, tie_word_embeddings=True, use_bias=True, leaks=True,
    ),
    "recurrent": _of(
        "recurrent_gemma", _GROUPED, lru_width=32, attention_window_size=3, block_types=["attention", "recurrent"],
        num_hidden_layers=2, logits_soft_cap=2.0, leaks=True,
    ),
    "minimax": _of(
        "minimax", _GROUPED, _LOCAL, head_dim=16, layer_types=["full_attention", "linear_attention"], block_size=4,
        full_attn_alpha_factor=0.7, full_attn_beta_factor=1.3, leaks=True,
    ),
    "modernbert": _of(
        "modernbert-decoder", _GROUPED, local_attention=4, layer_types=["sliding_attention", "full_attention"],
        embedding_dropout=0.0, mlp_dropout=0.0,
    ),
    "biogpt scale": _of(
        "biogpt", _WIDTHS, _SPECIAL, num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        scale_embedding=False, tie_word_embeddings=False,
    ),
    "gemma3, dynamic": _of(
        "gemma3_text", _GEMMA, W3, max_position_embeddings=16, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": DYNAMIC},
        by_longest=True,
    ),
    "jetmoe": _of(
        "jetmoe", _GROUPED, kv_channels=8, num_local_experts=4, num_experts_per_tok=1, tie_word_embeddings=False,
    ),
    "bitnet": _of("bitnet", _GROUPED, num_key_value_heads=1, tie_word_embeddings=True),
    "internlm3": _of(
        "internlm3", _GROUPED, head_dim=12, qkv_bias=True, bias=True, num_key_value_heads=1,
        rope_parameters={**DYNAMIC, "original_max_position_embeddings": 64},
    ),
    "minimax_m2 partial": _of(
        "minimax_m2", _GROUPED, _LOCAL, head_dim=16, rope_parameters=_PARTIAL, num_key_value_heads=1,
    ),
    "flex_olmo": _of(
        "flex_olmo", _GROUPED, num_experts=4, num_experts_per_tok=3, norm_topk_prob=True, attention_bias=True,
    ),
    "gemma4 caps": _of(
        "gemma4_text", _MIXED, W3, head_dim=16, global_head_dim=8, vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8, final_logit_softcapping=2.0, num_key_value_heads=1,
    ),
    "olmo_hybrid": _of(
        "olmo_hybrid", _GROUPED, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["full_attention", "linear_attention"], leaks=True,
    ),
    "qwen3_next dense": _of(
        "qwen3_next", _GROUPED, _EXPERTS, _DELTA, head_dim=16, shared_expert_intermediate_size=24,
        mlp_only_layers=[0], norm_topk_prob=False, leaks=True,
    ),
    "mamba pad": _of("mamba", _MAMBA1, use_conv_bias=False, use_bias=True, tie_word_embeddings=False, leaks=True),
    "zamba2 2": _of(
        "zamba2", _GROUPED, num_hidden_layers=4, num_key_value_heads=4, mamba_d_state=8, n_mamba_heads=8,
        mamba_headdim=8, mamba_ngroups=2, chunk_size=4, num_mem_blocks=2, hybrid_layer_ids=[1, 3],
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], adapter_rank=4, use_shared_attention_adapter=True,
        use_mem_rope=True, leaks=True,
    ),
    "nemotron_h": _of(
        "nemotron_h", _GROUPED, head_dim=8, layers_block_type=["attention", "mamba"], ssm_state_size=8,
        mamba_num_heads=8, mamba_head_dim=8, n_groups=2, chunk_size=4, use_bias=True, leaks=True,
    ),
    "persimmon relu": _of(
        "persimmon", _WIDTHS, _SPECIAL, num_hidden_layers=2, hidden_act="relu", rope_parameters={**_PARTIAL},
    ),
    "gpt_neox biased odd": _of(
        "gpt_neox", _WIDTHS, _SPECIAL, num_attention_heads=2, num_hidden_layers=2,
        rope_parameters={**_PARTIAL, "partial_rotary_factor": 0.125},
    ),
    "xglm": _of(
        "xglm", _SPECIAL, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, max_position_embeddings=256,
        dropout=0.0, attention_dropout=0.0, scale_embedding=False, activation_function="relu",
    ),
}
# fmt: on
SAMPLE = ("codegen", "llama dynamic short", "mistral w3")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in ODD])
def test_an_odd_config_says_what_stock_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSES, name, row := ODD[name])
    documents = rows(ALONE if row.by_longest else LENGTHS)
    ours, stock = both(name, tmp_path)
    truth = stock.alone(documents)
    as_stock((ours.alone if row.by_longest else ours.padded)(documents), truth, stock, documents, "padded")
    trained = {at for at, parameter in ours.model.named_parameters() if parameter.requires_grad}
    assert trained == truth.gradients.keys(), "an adapter that nothing goes through"
    if row.by_longest:  # by its config: what a long row moves another one by may be small
        assert model_facts(str(tmp_path / "base")).turns_at == row.options["max_position_embeddings"]
        return
    check = ours.check(documents)
    if row.leaks:
        assert check.holds is False, check.words
        return
    assert check.holds, check.words
    as_stock(ours.packed(documents), truth, stock, documents, "packed")
    assert ours.moved(documents) <= 1e-6
