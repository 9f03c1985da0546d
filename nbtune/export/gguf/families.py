"""The model families that can be written as GGUF, by ``model_type`` of config.json.

Facts of each: which architecture of llama.cpp runs it, what that architecture fixes by itself (then a config that says
otherwise is refused), and which weights it wants otherwise than transformers stores them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nbtune.errors import ExportError
from nbtune.export.gguf import deepseek, delta, gemmas, hybrids, routed, states
from nbtune.export.gguf import single_families as single
from nbtune.export.gguf.family import Family
from nbtune.export.gguf.hf_config import Config

_LLAMA3 = "llama3"
_OUT: tuple[str, ...] = ("attn_output",)
_MLP: tuple[str, ...] = ("ffn_up", "ffn_gate", "ffn_down")
_OUT_AND_MLP = (*_OUT, *_MLP)
_SHORTEST = 256  # tokens of context with which a file is of some use
STATES = Family("mamba", check=states.check, change=states.change, states=True, rope=False, names=states.NAMES)
_SWITCHED: dict[str, Any] = {"window": "switched", "unsaid_window": 4096}
LLAMA = Family("llama", factors=_LLAMA3, check=single.check_llama, permute=True)
WINDOWED = replace(LLAMA, window="always", unsaid_window=4096)
GLM_MOE = Family("glm4moe", check=routed.check_glm4_moe, extra=routed.metadata, moe=True, names=routed.BIAS)
MINISTRAL = Family(
    "mistral3", factors=_LLAMA3, check=single.check_ministral, extra=single.extra_ministral, permute=True
)
DEEPSEEK = Family(
    "deepseek2",
    unbiased=_MLP,
    check=deepseek.check_deepseek,
    extra=deepseek.metadata,
    moe=True,
    latent=True,
    names=deepseek.BIAS,
)
GRANITE_HYBRID = Family(
    "granitehybrid",
    factors=_LLAMA3,
    check=hybrids.check_granite,
    extra=hybrids.granite,
    change=states.change,
    parts=hybrids.parts_granite,
    attends=hybrids.attends,
    widths=hybrids.granite_width,
    permute=True,
    names=states.NAMES,
)
LFM2 = Family(
    "lfm2",
    check=hybrids.check_lfm2,
    extra=hybrids.lfm2,
    change=hybrids.change_lfm2,
    attends=hybrids.attends,
    widths=hybrids.lfm2_width,
)
NEMOTRON_H = Family(
    "nemotron_h",
    ties=False,
    check=hybrids.check_nemotron,
    extra=hybrids.nemotron,
    change=states.change,
    attends=hybrids.attends,
    widths=hybrids.nemotron_width,
    rope=False,
    names=hybrids.NEMOTRON,
)
QWEN35 = Family(
    "qwen35",
    unbiased=_OUT,
    check=delta.check,
    extra=delta.metadata_3_5,
    change=delta.change_3_5,
    columns=delta.columns,
    norm_plus_one=True,
    names=states.NAMES,
)
QWEN35_MOE = replace(QWEN35, arch="qwen35moe", check=delta.check_experts, moe=True)
GEMMA3 = Family(
    "gemma3", unbiased=_OUT, check=single.check_gemma3, extra=single.extra_gemma3, norm_plus_one=True, windows=True
)
GEMMA4 = Family(
    "gemma4",
    factors="proportional",
    check=gemmas.check_4,
    extra=gemmas.metadata_4,
    change=gemmas.change,
    attends=gemmas.key_heads,
    widths=gemmas.widths_4,
    scaled=gemmas.expert_scale,
    instead=lambda config: _gemma4(config),
    windows=True,
    names=gemmas.NAMES_4,
)
GEMMA3N = Family(
    "gemma3n",
    check=gemmas.check_3n,
    extra=gemmas.metadata_3n,
    change=gemmas.change,
    widths=gemmas.width_3n,
    stack=gemmas.stream,
    lacking=gemmas.lacking_3n,
    note=gemmas.NOTE_3N,
    windows=True,
    names=gemmas.NAMES_3N,
)
LLAMA4 = Family(
    "llama4",
    factors=_LLAMA3,
    check=routed.check_llama4,
    extra=routed.llama4,
    widths=routed.width_llama4,
    moe=True,
    turned=True,
)
FAMILIES: dict[str, Family] = {
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "falcon": Family(
        "falcon", check=single.check_falcon, extra=single.extra_falcon, layer_norm=True, change=single.change_falcon
    ),
    "gemma": Family("gemma", unbiased=_OUT, check=single.check_gemma, norm_plus_one=True),
    "gemma2": Family(
        "gemma2",
        unbiased=_OUT,
        check=single.check_gemma_scale,
        extra=single.extra_gemma2,
        norm_plus_one=True,
        windows=True,
    ),
    "gemma3": replace(GEMMA3, within=True),
    "gemma3_text": GEMMA3,
    "gemma3n": replace(GEMMA3N, within=True),
    "gemma3n_text": GEMMA3N,
    "gemma4": replace(GEMMA4, within=True),
    "gemma4_text": GEMMA4,
    "granite": Family("granite", factors=_LLAMA3, check=single.check_llama, extra=single.extra_granite, permute=True),
    "granitemoe": Family(
        "granitemoe", factors=_LLAMA3, check=single.check_llama, extra=single.extra_granite, permute=True, moe=True
    ),
    "gpt_oss": Family(
        "gpt-oss",
        head=True,
        check=single.check_gpt_oss,
        extra=single.extra_gpt_oss,
        moe=True,
        turned=True,
        in_turn=True,
        windows=True,
        names={r"model\.layers\.(\d+)\.self_attn\.sinks": r"blk.\1.attn_sinks.weight"},
    ),
    "llama": LLAMA,
    "llama4": replace(LLAMA4, within=True),
    "llama4_text": LLAMA4,
    "mistral": WINDOWED,
    "mixtral": replace(LLAMA, moe=True, window="always"),
    "mpt": Family("mpt", check=single.check_mpt, extra=single.extra_mpt, layer_norm=True, rope=False),
    "olmo2": Family("olmo2", unbiased=_OUT, head=True, check=single.check_llama),
    "olmoe": Family("olmoe", unbiased=_OUT, head=True, check=single.check_olmoe, moe=True),
    "phi": Family("phi2", head=True, check=single.check_phi, layer_norm=True),
    "phi3": Family("phi3", factors="longrope", check=single.check_llama, extra=single.sliding, window="always"),
    "qwen2": Family("qwen2", check=single.check_llama, **_SWITCHED),
    "qwen2_moe": Family(
        "qwen2moe",
        head=True,
        check=single.check_qwen2_moe,
        extra=single.extra_moe,
        change=single.change_qwen2_moe,
        moe=True,
        **_SWITCHED,
    ),
    "qwen3": Family("qwen3", unbiased=_OUT, check=single.check_llama, **_SWITCHED),
    "qwen3_moe": Family(
        "qwen3moe", unbiased=_OUT, check=single.check_qwen3_moe, extra=single.extra_moe, moe=True, **_SWITCHED
    ),
    "smollm3": Family("smollm3", unbiased=_OUT_AND_MLP, check=single.check_smollm3, permute=True, window="switched"),
    "apertus": Family(
        "apertus",
        factors=_LLAMA3,
        head=True,
        unbiased=("attn_",),
        check=single.check_xielu,
        keyed={f".act_fn.{one}": f"xielu.{one}" for one in ("alpha_p", "alpha_n", "beta", "eps")},
    ),
    "arcee": Family("arcee", factors=_LLAMA3, unbiased=_OUT_AND_MLP, check=single.check_relu2, permute=True),
    "bloom": Family(
        "bloom",
        check=single.check_bloom,
        change=single.change_by_head,
        layer_norm=True,
        rope=False,
        names={
            r"transformer\.h\.(\d+)\.post_attention_layernorm\.(weight|bias)": r"blk.\1.ffn_norm.\2",
            r"transformer\.word_embeddings_layernorm\.(weight|bias)": r"token_embd_norm.\1",
        },
    ),
    "cohere": Family(
        "command-r", unbiased=_OUT, check=single.check_cohere, extra=single.extra_logit_scale, layer_norm=True
    ),
    "cohere2": Family(
        "cohere2", unbiased=_OUT, check=single.check_cohere2, extra=single.extra_cohere2, layer_norm=True, windows=True
    ),
    "ernie4_5": Family("ernie4_5", unbiased=_MLP, check=single.check_llama),
    "exaone4": Family("exaone4", factors=_LLAMA3, check=single.check_exaone4, extra=single.sliding, windows=True),
    "glm4": Family("glm4", check=single.check_llama),
    "gpt2": Family("gpt2", check=single.check_gpt2, change=single.change_conv1d, layer_norm=True, rope=False),
    "gpt_neox": Family(
        "gptneox",
        head=True,
        check=single.check_neox,
        extra=single.extra_parallel,
        change=single.change_by_head,
        layer_norm=True,
    ),
    "nemotron": Family("nemotron", head=True, check=single.check_nemotron, layer_norm=True, norm_plus_one=True),
    "olmo": Family(
        "olmo", unbiased=_OUT, check=single.check_llama, extra=single.extra_olmo, layer_norm=True, permute=True
    ),
    "olmo3": Family("olmo2", unbiased=_OUT, head=True, check=single.check_olmo3, extra=single.sliding, windows=True),
    "seed_oss": Family("seed_oss", unbiased=_OUT_AND_MLP, check=single.check_llama),
    "dbrx": Family(
        "dbrx",
        layer_norm=True,
        check=routed.check_dbrx,
        extra=routed.dbrx,
        parts=routed.parts_dbrx,
        moe=True,
    ),
    "dots1": Family(
        "dots1", unbiased=_OUT, head=True, check=routed.check_dots, extra=routed.metadata, moe=True, names=routed.BIAS
    ),
    "ernie4_5_moe": Family(
        "ernie4_5-moe", check=routed.check_ernie_moe, extra=routed.ernie_moe, moe=True, names=routed.BIAS
    ),
    "falcon_mamba": STATES,
    "glm4_moe_lite": DEEPSEEK,
    "youtu": replace(DEEPSEEK, moe=False),
    "minicpm3": Family(
        "minicpm3",
        factors="longrope",
        unbiased=_OUT_AND_MLP,
        check=deepseek.check_minicpm3,
        extra=deepseek.widths,
        latent=True,
    ),
    "internlm3": LLAMA,
    "helium": replace(LLAMA, permute=False),
    "ministral": WINDOWED,
    "cwm": WINDOWED,
    "exaone": Family("exaone", factors=_LLAMA3, check=single.check_llama),
    "glm": Family("chatglm", check=single.check_glm),
    "solar_open": GLM_MOE,
    "afmoe": Family(
        "afmoe",
        unbiased=("attn_",),
        check=routed.check_afmoe,
        extra=routed.afmoe,
        moe=True,
        windows=True,
        names=routed.BIAS,
    ),
    "exaone_moe": Family(
        "exaone-moe",
        factors=_LLAMA3,
        check=routed.check_exaone_moe,
        extra=routed.exaone_moe,
        moe=True,
        windows=True,
        names=routed.BIAS,
    ),
    "glm4_moe": GLM_MOE,
    "gpt_bigcode": Family(
        "starcoder", check=single.check_gpt2, change=single.change_bigcode, layer_norm=True, rope=False
    ),
    "hunyuan_v1_dense": Family("hunyuan-dense", unbiased=_OUT, check=single.check_llama),
    "jais2": Family("jais2", check=single.check_jais2, layer_norm=True),
    "mamba": STATES,
    "mamba2": replace(STATES, arch="mamba2"),
    "minimax_m2": Family(
        "minimax-m2", head=True, check=routed.check, extra=routed.minimax, moe=True, names=routed.BIAS
    ),
    "bamba": GRANITE_HYBRID,
    "falcon_h1": Family(
        "falcon-h1",
        unbiased=_OUT,
        check=hybrids.check_falcon_h1,
        extra=hybrids.mamba2,
        change=hybrids.change_falcon_h1,
        parts=hybrids.parts_falcon_h1,
        names=states.NAMES,
    ),
    "granitemoehybrid": replace(GRANITE_HYBRID, instead=lambda config: _granite(config)),
    "granitemoeshared": Family(
        "granitemoe",
        factors=_LLAMA3,
        check=single.check_llama,
        extra=hybrids.granite_shared,
        parts=hybrids.parts_granite,
        permute=True,
        moe=True,
    ),
    "hunyuan_v1_moe": Family("hunyuan-moe", unbiased=_OUT, check=single.check_llama, extra=routed.hunyuan, moe=True),
    "jamba": Family(
        "jamba",
        check=hybrids.check_jamba,
        extra=hybrids.jamba,
        change=states.change,
        attends=hybrids.attends,
        moe=True,
        rope=False,
    ),
    "lfm2": LFM2,
    "lfm2_moe": replace(
        LFM2,
        arch="lfm2moe",
        check=hybrids.check_lfm2_moe,
        extra=hybrids.lfm2_moe,
        moe=True,
        names=hybrids.EXPERT_BIAS,
    ),
    "ministral3": MINISTRAL,
    "nemotron_h": replace(NEMOTRON_H, instead=lambda config: _nemotron(config)),
    "qwen3_5": replace(QWEN35, within=True),
    "qwen3_5_text": QWEN35,
    "qwen3_5_moe": replace(QWEN35_MOE, within=True),
    "qwen3_5_moe_text": QWEN35_MOE,
    "qwen3_next": Family(
        "qwen3next",
        unbiased=_OUT,
        check=delta.check_experts,
        extra=delta.metadata,
        change=delta.change,
        parts=delta.parts,
        norm_plus_one=True,
        moe=True,
        names=states.NAMES,
    ),
    "stablelm": Family(
        "stablelm", head=True, check=single.check_stablelm, extra=single.extra_parallel, layer_norm=True
    ),
    "starcoder2": Family("starcoder2", check=single.check_starcoder2, layer_norm=True, window="always"),
}


def _granite(config: Config) -> Family:
    """Return what a Granite 4 is: with states or without, with experts or without."""
    moe = bool(config.get("num_local_experts"))
    if all(hybrids.attends(config)):
        return replace(GRANITE_HYBRID, arch="granitemoe" if moe else "granite", attends=None, moe=moe)
    return replace(GRANITE_HYBRID, moe=moe, rope=hybrids.rotates(config))


def _gemma4(config: Config) -> Family:
    return replace(GEMMA4, moe=bool(config.get("enable_moe_block")))


def _nemotron(config: Config) -> Family:
    if not hybrids.with_experts(config):
        return NEMOTRON_H
    return replace(NEMOTRON_H, arch="nemotron_h_moe", extra=hybrids.nemotron_moe, moe=True, unbiased=_MLP)


def family_of(config: Config) -> Family:
    """Return the family of a config.

    Raises:
        ExportError: nbtune does not know how to write it, with the families that it does know.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ExportError(
            f"nbtune cannot write a {config.model_type!r} model as GGUF (it knows {', '.join(sorted(FAMILIES))})",
            place=config.place,
            fix="`export --gguf` writes it merged, and says which of llama.cpp's commands makes the file of that.",
        )
    if family.instead:
        family = replace(family.instead(config), within=family.within)
    if family.check:
        family.check(config)
    tokens = family.context(config)
    reason = f"it has a sliding window of {tokens} tokens, beyond which llama.cpp's {family.arch!r} computes otherwise"
    single.refuse(config, tokens < min(_SHORTEST, config.context), reason)
    return family
