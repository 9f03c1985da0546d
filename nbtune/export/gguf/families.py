"""The model families that can be written as GGUF: their names in llama.cpp, their metadata, their tensors.

A family is found by ``model_type`` of config.json. Facts of each: which architecture of llama.cpp runs it, what that
architecture fixes by itself (then a config that says otherwise is refused), and which weights it wants otherwise than
transformers stores them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nbtune.errors import ExportError
from nbtune.export.gguf.experts import is_stack, single_expert, split_stack
from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.rope import rope_metadata, rope_tensors
from nbtune.export.gguf.tensors import GgufTensor, mapped, permuted, plain, stacked
from nbtune.export.merge import MergedModel

# Buffers that old checkpoints hold, and that are computed.
_COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")


@dataclass(frozen=True)
class Family:
    """How one family is written.

    Args:
        arch: llama.cpp's name of the architecture.
        check: raises ExportError for a config that the architecture does not run as transformers does.
        extra: writes metadata beyond the common.
        permute: query and key rows are reordered for llama.cpp's neighbour-wise rotation.
        norm_plus_one: norms are stored as w, and computed with 1 + w.
        layer_norm: norms are LayerNorms (their epsilon has another key).
        change: weights that need a family's own treatment: the family's function of (model, config, source, name).
        moe: experts are stacked. in_turn: their stacks lie turned, with gates and ups in turn.
        window, unsaid_window: whether its layers see a window of the text, see `Config.window`.
        windows: the architecture runs the family's sliding windows. (llama.cpp's "llama" and "qwen" know none, and it
            has switched off those of "phi3".)
    """

    arch: str
    check: Callable[[Config], None] | None = None
    extra: Callable[[Config, Any], None] | None = None
    permute: bool = False
    norm_plus_one: bool = False
    layer_norm: bool = False
    change: Callable[[MergedModel, Config, str, str], GgufTensor | None] | None = None
    moe: bool = False
    in_turn: bool = False
    window: str = ""
    unsaid_window: int = 0
    windows: bool = False
    rope: bool = True
    names: dict[str, str] = field(default_factory=dict)

    def metadata(self, config: Config, model: MergedModel, writer: Any) -> None:
        """Write what llama.cpp has to know to run this model."""
        writer.add_context_length(self.context(config))
        writer.add_embedding_length(config.hidden)
        writer.add_block_count(config.layers)
        ffn = config.get("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * config.hidden)
        writer.add_feed_forward_length(int(ffn))
        writer.add_head_count(config.heads)
        writer.add_head_count_kv(config.kv_heads)
        if config.get("head_dim") is not None:
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
        if self.layer_norm:
            writer.add_layer_norm_eps(
                float(config.get("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", default=1e-5))
            )
        else:
            writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", default=1e-6)))
        writer.add_vocab_size(model.shape(model.embedding or "")[0])
        if self.rope:
            writer.add_rope_dimension_count(config.rotary_dim)
            rope_metadata(config, writer)
        if self.moe:
            writer.add_expert_count(int(config.need("num_local_experts", "num_experts")))
            writer.add_expert_used_count(int(config.need("num_experts_per_tok")))
        if self.extra:
            self.extra(config, writer)

    def context(self, config: Config) -> int:
        """Return up to how many tokens llama.cpp computes what transformers does: to the end of a window that it
        ignores."""
        ignored = None if self.windows else config.window(self.window, self.unsaid_window)
        return min(config.context, ignored or config.context)

    def notes(self, config: Config) -> tuple[str, ...]:
        """Return what a person should know of the file."""
        notes = []
        if config.rope().get("truncate") is False:
            notes.append(
                "llama.cpp rounds where its rotary scaling begins and ends, and the model does not: far into a text it "
                "turns some angles otherwise, as it does for everybody's files of this family"
            )
        if (tokens := self.context(config)) != config.context:
            notes.append(
                f"its context is {tokens} tokens, not {config.context}: the model has a sliding window of {tokens}, "
                f"which llama.cpp's {self.arch!r} does not run"
            )
        return tuple(notes)

    def tensors(self, config: Config, model: MergedModel) -> list[GgufTensor]:
        """Return the file's tensors, in order.

        Raises:
            ExportError: the model has a weight that llama.cpp's architecture has no place for.
        """
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == self.arch)
        names = get_tensor_name_map(MODEL_ARCH(arch), config.layers)
        made: list[GgufTensor] = []
        experts: dict[str, dict[int, str]] = {}
        for source in model.names:
            if _COMPUTED.search(source) or (config.tied and source == "lm_head.weight"):
                continue
            if self.moe and (expert := single_expert(source)):
                experts.setdefault(expert[0], {})[expert[1]] = source
                continue
            made += self._one(config, model, names, source)
        made += [stacked(model, [found[i] for i in sorted(found)], key) for key, found in experts.items()]
        made += rope_tensors(config) if self.rope else []
        return sorted(made, key=_order)

    def _one(self, config: Config, model: MergedModel, names: Any, source: str) -> list[GgufTensor]:
        if self.moe and is_stack(source):
            return split_stack(model, source, in_turn=self.in_turn)
        name = self._name(names, source)
        if name is None:
            raise ExportError(
                f"llama.cpp's {self.arch!r} has no place for the weight {source!r}",
                place=str(model.source.base),
                fix="export the merged safetensors or the adapter instead.",
            )
        if self.change and (tensor := self.change(model, config, source, name)):
            return [tensor]
        if self.permute and ".attn_q." in name:
            return [permuted(model, source, name, config.heads)]
        if self.permute and ".attn_k." in name:
            return [permuted(model, source, name, config.kv_heads)]
        if self.norm_plus_one and name.endswith("norm.weight"):
            return [mapped(model, source, name, lambda weight: weight + 1)]
        return [plain(model, source, name, full="ffn_gate_inp" in name)]

    def _name(self, names: Any, source: str) -> str | None:
        for pattern, name in self.names.items():
            if match := re.fullmatch(pattern, source):
                return match.expand(name)
        return names.get_name(source, try_suffixes=(".weight", ".bias"))


def _order(tensor: GgufTensor) -> tuple[int, int, str]:
    match = re.match(r"blk\.(\d+)\.", tensor.name)
    if match:
        return (1, int(match[1]), tensor.name)
    return (2 if tensor.name.startswith("output") else 0, 0, tensor.name)


def _refuse(config: Config, wrong: bool, what: str) -> None:
    if wrong:
        raise ExportError(
            f"{config.model_type}: {what}, and llama.cpp does not run that",
            place=config.place,
            fix="export the merged safetensors or the adapter instead.",
        )


# --- what single families need ------------------------------------------------------------------------------------


_SHORTEST = 256  # tokens of context with which a file is of some use


def _check_llama(config: Config) -> None:
    _refuse(config, config.get("hidden_act", default="silu") != "silu", "the activation is not silu")


def _sliding(config: Config, writer: Any) -> None:
    if config.get("sliding_window"):
        writer.add_sliding_window(int(config.get("sliding_window")))


def _check_qwen2_moe(config: Config) -> None:
    _check_llama(config)
    _refuse(config, bool(config.get("norm_topk_prob")), "norm_topk_prob is on")
    _refuse(
        config,
        config.get("decoder_sparse_step", default=1) != 1 or bool(config.get("mlp_only_layers")),
        "some layers are dense",
    )


def _check_qwen3_moe(config: Config) -> None:
    _check_llama(config)
    _refuse(config, not config.get("norm_topk_prob"), "norm_topk_prob is off")
    _refuse(
        config,
        config.get("decoder_sparse_step", default=1) != 1 or bool(config.get("mlp_only_layers")),
        "some layers are dense",
    )


def _extra_moe(config: Config, writer: Any) -> None:
    writer.add_expert_feed_forward_length(int(config.need("moe_intermediate_size")))
    if config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(int(config.get("shared_expert_intermediate_size")))


def _change_qwen2_moe(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return mapped(model, source, name, lambda weight: weight.flatten(), shape=(config.hidden,))
    return None


def _check_olmoe(config: Config) -> None:
    _check_llama(config)
    _refuse(config, bool(config.get("norm_topk_prob")), "norm_topk_prob is on")
    _refuse(config, config.kv_heads != config.heads, "several queries share a key")
    _refuse(config, config.get("clip_qkv") is not None, "it clips queries, keys and values")


def _check_gpt_oss(config: Config) -> None:
    gate = float(config.get("swiglu_alpha", default=1.702)), float(config.get("swiglu_limit", default=7.0))
    _refuse(config, gate != (1.702, 7.0), "its gate's alpha and limit are not 1.702 and 7")
    usual = ["full_attention" if i % 2 else "sliding_attention" for i in range(config.layers)]
    _refuse(config, list(config.get("layer_types", default=usual)) != usual, "its windows are not every other layer's")


def _extra_gpt_oss(config: Config, writer: Any) -> None:
    writer.add_sliding_window(int(config.need("sliding_window")))
    writer.add_expert_feed_forward_length(int(config.need("intermediate_size")))


def _check_gemma(config: Config) -> None:
    act = config.get("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    _refuse(config, act not in ("gelu_pytorch_tanh", "gelu"), f"the activation is {act!r}")


def _check_gemma_scale(config: Config) -> None:
    _check_gemma(config)
    scalar = config.get("query_pre_attn_scalar", default=config.head_dim)
    _refuse(
        config,
        scalar != config.head_dim and config.layers not in (46, 62),
        "query_pre_attn_scalar is not the head's width",
    )


def _extra_gemma2(config: Config, writer: Any) -> None:
    writer.add_attn_logit_softcapping(float(config.get("attn_logit_softcapping", default=50.0)))
    writer.add_final_logit_softcapping(float(config.get("final_logit_softcapping", default=30.0)))
    writer.add_sliding_window(int(config.need("sliding_window")))


def _check_gemma3(config: Config) -> None:
    _check_gemma_scale(config)
    _refuse(
        config, bool(config.get("attn_logit_softcapping") or config.get("final_logit_softcapping")), "it caps logits"
    )
    kinds = config.get("layer_types")
    usual = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(config.layers)]
    _refuse(config, bool(kinds) and list(kinds) != usual, "its global layers are not every sixth")
    local = float(config.rope("sliding_attention")["rope_theta"]) if config.get("rope_parameters") else 10000.0
    local = float(config.get("rope_local_base_freq", default=local))
    _refuse(config, local != 10000.0, "its local layers' rotary base is not 10000")


def _extra_gemma3(config: Config, writer: Any) -> None:
    writer.add_sliding_window(int(config.need("sliding_window")))


def _check_phi(config: Config) -> None:
    _refuse(config, bool(config.get("qk_layernorm")), "it normalises queries and keys")


def _check_falcon(config: Config) -> None:
    _refuse(config, bool(config.get("alibi")), "it uses ALiBi")
    _refuse(config, bool(config.get("bias")), "its linear layers have biases")
    _refuse(config, not config.get("parallel_attn", default=True), "attention and MLP are not parallel")


def _extra_falcon(config: Config, writer: Any) -> None:
    writer.add_tensor_data_layout("jploski")


def _change_falcon(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Reorder Falcon's newer layout, q…, k, v by key head, into all q, all k, all v."""
    if "attn_qkv" not in name or not config.get("new_decoder_architecture"):
        return None
    groups, per, dim = config.kv_heads, config.heads // config.kv_heads, config.head_dim

    def regroup(weight: torch.Tensor) -> torch.Tensor:
        parts = weight.reshape(groups, per + 2, dim, -1)
        q, k, v = parts[:, :per], parts[:, per : per + 1], parts[:, per + 1 :]
        return torch.cat([p.reshape(-1, weight.shape[1]) for p in (q, k, v)])

    return mapped(model, source, name, regroup)


def _mpt(config: Config, key: str, default: Any) -> Any:
    return (config.get("attn_config", default={}) or {}).get(key, default)


def _check_mpt(config: Config) -> None:
    _refuse(config, not config.get("no_bias", default=True), "its linear layers have biases")
    _refuse(config, bool(_mpt(config, "qk_ln", False)), "it normalises queries and keys")
    _refuse(config, not _mpt(config, "alibi", True), "it does not use ALiBi")


def _extra_mpt(config: Config, writer: Any) -> None:
    writer.add_max_alibi_bias(float(_mpt(config, "alibi_bias_max", 8)))
    if _mpt(config, "clip_qkv", None) is not None:
        writer.add_clamp_kqv(float(_mpt(config, "clip_qkv", 0.0)))


def _extra_granite(config: Config, writer: Any) -> None:
    writer.add_attention_scale(float(config.need("attention_multiplier")))
    writer.add_embedding_scale(float(config.need("embedding_multiplier")))
    writer.add_residual_scale(float(config.need("residual_multiplier")))
    writer.add_logit_scale(float(config.need("logits_scaling")))


def _check_smollm3(config: Config) -> None:
    _check_llama(config)
    rotated = config.get("no_rope_layers")
    usual = [int((i + 1) % 4 != 0) for i in range(config.layers)]
    _refuse(config, bool(rotated) and list(rotated) != usual, "its layers without rotary are not every fourth")


_SWITCHED: dict[str, Any] = {"window": "switched", "unsaid_window": 4096}
LLAMA = Family("llama", check=_check_llama, permute=True)
FAMILIES: dict[str, Family] = {
    "falcon": Family("falcon", check=_check_falcon, extra=_extra_falcon, layer_norm=True, change=_change_falcon),
    "gemma": Family("gemma", check=_check_gemma, norm_plus_one=True),
    "gemma2": Family("gemma2", check=_check_gemma_scale, extra=_extra_gemma2, norm_plus_one=True, windows=True),
    "gemma3_text": Family("gemma3", check=_check_gemma3, extra=_extra_gemma3, norm_plus_one=True, windows=True),
    "granite": Family("granite", check=_check_llama, extra=_extra_granite, permute=True),
    "granitemoe": Family("granitemoe", check=_check_llama, extra=_extra_granite, permute=True, moe=True),
    "gpt_oss": Family(
        "gpt-oss",
        check=_check_gpt_oss,
        extra=_extra_gpt_oss,
        moe=True,
        in_turn=True,
        windows=True,
        names={r"model\.layers\.(\d+)\.self_attn\.sinks": r"blk.\1.attn_sinks.weight"},
    ),
    "llama": LLAMA,
    "mistral": replace(LLAMA, window="always", unsaid_window=4096),
    "mixtral": replace(LLAMA, moe=True, window="always"),
    "mpt": Family("mpt", check=_check_mpt, extra=_extra_mpt, layer_norm=True, rope=False),
    "olmo2": Family("olmo2", check=_check_llama),
    "olmoe": Family("olmoe", check=_check_olmoe, moe=True),
    "phi": Family("phi2", check=_check_phi, layer_norm=True),
    "phi3": Family("phi3", check=_check_llama, extra=_sliding, window="always"),
    "qwen2": Family("qwen2", check=_check_llama, **_SWITCHED),
    "qwen2_moe": Family(
        "qwen2moe", check=_check_qwen2_moe, extra=_extra_moe, change=_change_qwen2_moe, moe=True, **_SWITCHED
    ),
    "qwen3": Family("qwen3", check=_check_llama, **_SWITCHED),
    "qwen3_moe": Family("qwen3moe", check=_check_qwen3_moe, extra=_extra_moe, moe=True, **_SWITCHED),
    "smollm3": Family("smollm3", check=_check_smollm3, permute=True, window="switched"),
}


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
            fix="export the merged safetensors or the adapter instead.",
        )
    if family.check:
        family.check(config)
    tokens = family.context(config)
    reason = f"it has a sliding window of {tokens} tokens, beyond which llama.cpp's {family.arch!r} computes otherwise"
    _refuse(config, tokens < min(_SHORTEST, config.context), reason)
    return family
