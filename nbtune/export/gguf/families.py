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

from nbtune.errors import ExportError
from nbtune.export.gguf import deepseek, routed, states
from nbtune.export.gguf import single_families as single
from nbtune.export.gguf.experts import is_stack, single_expert, split_stack
from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.rope import rope_metadata, rope_tensors
from nbtune.export.gguf.tensors import GgufTensor, mapped, permuted, plain, stacked
from nbtune.export.merge import MergedModel
from nbtune.models.config_facts import CHOSEN, EXPERTS

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
        latent: attention is by latent vectors.
        states: it has states, and no attention.
        within: where a model that also sees or hears has its language model; of the rest nothing is written.
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
    latent: bool = False
    states: bool = False
    within: str = ""
    names: dict[str, str] = field(default_factory=dict)

    def metadata(self, config: Config, model: MergedModel, writer: Any) -> None:
        """Write what llama.cpp has to know to run this model."""
        if self.states:
            writer.add_vocab_size(model.shape(model.embedding or "")[0])
            states.metadata(config, writer)
            return
        writer.add_context_length(self.context(config))
        writer.add_embedding_length(config.hidden)
        writer.add_block_count(config.layers)
        ffn = config.get("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * config.hidden)
        writer.add_feed_forward_length(int(ffn))
        writer.add_head_count(config.heads)
        writer.add_head_count_kv(config.kv_heads)
        if config.get("head_dim") is not None and not self.latent:
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
        if self.layer_norm:
            writer.add_layer_norm_eps(
                float(config.get("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", default=1e-5))
            )
        else:
            writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", default=1e-6)))
        writer.add_vocab_size(model.shape(model.embedding or "")[0])
        if self.rope:
            writer.add_rope_dimension_count(config.rotary_dim)
            rope_metadata(config, writer)
        if self.moe:
            writer.add_expert_count(int(config.need(*EXPERTS)))
            writer.add_expert_used_count(int(config.need(*CHOSEN)))
        if self.extra:
            self.extra(config, writer)

    def context(self, config: Config) -> int:
        """Return up to how many tokens llama.cpp computes what transformers does: to the end of a window that it
        ignores."""
        if self.states:
            return states.CONTEXT
        ignored = None if self.windows else config.window(self.window, self.unsaid_window)
        return min(config.context, ignored or config.context)

    def notes(self, config: Config) -> tuple[str, ...]:
        """Return what a person should know of the file."""
        notes = []
        if self.within:
            notes.append("it holds the language model alone, which reads and writes text")
        if config.rope().get("truncate") is False:
            notes.append(
                "llama.cpp rounds where its rotary scaling begins and ends, and the model does not: far into a text it "
                "turns some angles otherwise, as it does for everybody's files of this family"
            )
        if (tokens := self.context(config)) != config.context and not self.states:
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
            if _COMPUTED.search(source) or (config.tied and source.removeprefix(self.within) == "lm_head.weight"):
                continue
            if not source.startswith(self.within):
                continue
            if self.moe and deepseek.is_of_more_layers(config, source):
                continue  # which predict further tokens
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
        source = source.removeprefix(self.within)
        for pattern, name in self.names.items():
            if match := re.fullmatch(pattern, source):
                return match.expand(name)
        return names.get_name(source, try_suffixes=(".weight", ".bias"))


def _order(tensor: GgufTensor) -> tuple[int, int, str]:
    match = re.match(r"blk\.(\d+)\.", tensor.name)
    if match:
        return (1, int(match[1]), tensor.name)
    return (2 if tensor.name.startswith("output") else 0, 0, tensor.name)


_SHORTEST = 256  # tokens of context with which a file is of some use
STATES = Family("mamba", check=states.check, change=states.change, states=True, rope=False, names=states.NAMES)
_SWITCHED: dict[str, Any] = {"window": "switched", "unsaid_window": 4096}
LLAMA = Family("llama", check=single.check_llama, permute=True)
DEEPSEEK = Family(
    "deepseek2", check=deepseek.check_deepseek, extra=deepseek.metadata, moe=True, latent=True, names=deepseek.BIAS
)
GEMMA3 = Family("gemma3", check=single.check_gemma3, extra=single.extra_gemma3, norm_plus_one=True, windows=True)
FAMILIES: dict[str, Family] = {
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "falcon": Family(
        "falcon", check=single.check_falcon, extra=single.extra_falcon, layer_norm=True, change=single.change_falcon
    ),
    "gemma": Family("gemma", check=single.check_gemma, norm_plus_one=True),
    "gemma2": Family(
        "gemma2", check=single.check_gemma_scale, extra=single.extra_gemma2, norm_plus_one=True, windows=True
    ),
    "gemma3": replace(GEMMA3, within="language_model."),
    "gemma3_text": GEMMA3,
    "granite": Family("granite", check=single.check_llama, extra=single.extra_granite, permute=True),
    "granitemoe": Family("granitemoe", check=single.check_llama, extra=single.extra_granite, permute=True, moe=True),
    "gpt_oss": Family(
        "gpt-oss",
        check=single.check_gpt_oss,
        extra=single.extra_gpt_oss,
        moe=True,
        in_turn=True,
        windows=True,
        names={r"model\.layers\.(\d+)\.self_attn\.sinks": r"blk.\1.attn_sinks.weight"},
    ),
    "llama": LLAMA,
    "mistral": replace(LLAMA, window="always", unsaid_window=4096),
    "mixtral": replace(LLAMA, moe=True, window="always"),
    "mpt": Family("mpt", check=single.check_mpt, extra=single.extra_mpt, layer_norm=True, rope=False),
    "olmo2": Family("olmo2", check=single.check_llama),
    "olmoe": Family("olmoe", check=single.check_olmoe, moe=True),
    "phi": Family("phi2", check=single.check_phi, layer_norm=True),
    "phi3": Family("phi3", check=single.check_llama, extra=single.sliding, window="always"),
    "qwen2": Family("qwen2", check=single.check_llama, **_SWITCHED),
    "qwen2_moe": Family(
        "qwen2moe",
        check=single.check_qwen2_moe,
        extra=single.extra_moe,
        change=single.change_qwen2_moe,
        moe=True,
        **_SWITCHED,
    ),
    "qwen3": Family("qwen3", check=single.check_llama, **_SWITCHED),
    "qwen3_moe": Family("qwen3moe", check=single.check_qwen3_moe, extra=single.extra_moe, moe=True, **_SWITCHED),
    "smollm3": Family("smollm3", check=single.check_smollm3, permute=True, window="switched"),
    "arcee": Family("arcee", check=single.check_relu2, permute=True),
    "bloom": Family(
        "bloom",
        change=single.change_by_head,
        layer_norm=True,
        rope=False,
        names={
            r"transformer\.h\.(\d+)\.post_attention_layernorm\.(weight|bias)": r"blk.\1.ffn_norm.\2",
            r"transformer\.word_embeddings_layernorm\.(weight|bias)": r"token_embd_norm.\1",
        },
    ),
    "cohere": Family("command-r", check=single.check_cohere, extra=single.extra_logit_scale, layer_norm=True),
    "cohere2": Family("cohere2", check=single.check_cohere2, extra=single.extra_cohere2, layer_norm=True, windows=True),
    "ernie4_5": Family("ernie4_5", check=single.check_llama),
    "exaone4": Family("exaone4", check=single.check_exaone4, extra=single.sliding, windows=True),
    "glm4": Family("glm4", check=single.check_llama),
    "gpt2": Family("gpt2", check=single.check_gpt2, change=single.change_conv1d, layer_norm=True, rope=False),
    "gpt_neox": Family(
        "gptneox", check=single.check_neox, extra=single.extra_parallel, change=single.change_by_head, layer_norm=True
    ),
    "nemotron": Family("nemotron", check=single.check_relu2, layer_norm=True, norm_plus_one=True),
    "olmo": Family("olmo", check=single.check_llama, extra=single.extra_olmo, layer_norm=True, permute=True),
    "olmo3": Family("olmo2", check=single.check_olmo3, extra=single.sliding, windows=True),
    "seed_oss": Family("seed_oss", check=single.check_llama),
    "dots1": Family("dots1", check=routed.check_dots, extra=routed.metadata, moe=True, names=routed.BIAS),
    "ernie4_5_moe": Family(
        "ernie4_5-moe", check=routed.check_ernie_moe, extra=routed.ernie_moe, moe=True, names=routed.BIAS
    ),
    "falcon_mamba": STATES,
    "glm4_moe": Family("glm4moe", check=routed.check_glm4_moe, extra=routed.metadata, moe=True, names=routed.BIAS),
    "gpt_bigcode": Family("starcoder", check=single.check_gpt2, layer_norm=True, rope=False),
    "hunyuan_v1_dense": Family("hunyuan-dense", check=single.check_llama),
    "jais2": Family("jais2", check=single.check_relu2, layer_norm=True),
    "mamba": STATES,
    "mamba2": replace(STATES, arch="mamba2"),
    "minimax_m2": Family("minimax-m2", check=routed.check, extra=routed.minimax, moe=True, names=routed.BIAS),
    "stablelm": Family("stablelm", check=single.check_stablelm, extra=single.extra_parallel, layer_norm=True),
    "starcoder2": Family("starcoder2", check=single.check_starcoder2, layer_norm=True, window="always"),
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
            fix="`export --gguf` writes it merged, and says which of llama.cpp's commands makes the file of that.",
        )
    if family.check:
        family.check(config)
    tokens = family.context(config)
    reason = f"it has a sliding window of {tokens} tokens, beyond which llama.cpp's {family.arch!r} computes otherwise"
    single.refuse(config, tokens < min(_SHORTEST, config.context), reason)
    return family
