"""The config of transformers that a GGUF file's keys and tensors describe, for each architecture that is read.

What an architecture of llama.cpp fixes by itself (an activation, an order of layers) is written out here; what is said
by the tensors that are there (biases, tied heads, factors of rotary angles) is read from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbtune.models.gguf_file.header import GgufHeader, refused
from nbtune.models.gguf_file.rotary import rope_parameters

_MOST_CONTEXT = 1 << 27  # tokens
_OTHERS = {
    "clip": "it is what a model sees or hears with (a projector), not a language model",
    "": "it names no architecture",
}


@dataclass(frozen=True)
class Architecture:
    """How an architecture of llama.cpp is read.

    Args:
        model_type: transformers' name.
        more: settings beyond the common ones.
        permute: query and key rows lie in llama.cpp's neighbour-wise order.
        norm_plus_one: norms are stored as 1 + w.
        layer_norm: norms are LayerNorms.
        experts: how single experts are called in transformers' files: gate, up, down.
    """

    model_type: str
    more: Callable[[Keys], dict[str, Any]] = lambda keys: {}
    permute: bool = False
    norm_plus_one: bool = False
    layer_norm: bool = False


class Keys:
    """The keys of a file's architecture: `whole("block_count")` is that of ``llama.block_count``."""

    def __init__(self, header: GgufHeader) -> None:
        self.header, self.arch = header, header.arch

    def has(self, key: str) -> bool:
        """Return whether it is there."""
        return f"{self.arch}.{key}" in self.header.metadata

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a whole number, see `GgufHeader.whole`."""
        return self.header.whole(f"{self.arch}.{key}", default)

    def real(self, key: str, default: float | None = None) -> float:
        """Return a number."""
        return self.header.real(f"{self.arch}.{key}", default)

    def text(self, key: str, default: str = "") -> str:
        """Return a text."""
        return self.header.text(f"{self.arch}.{key}", default)

    def holds(self, part: str) -> bool:
        """Return whether the first block has a tensor of that name."""
        return f"blk.0.{part}" in self.header.tensors

    @property
    def layers(self) -> int:
        """Number of blocks: as the file says it, and as its tensors do."""
        return self.whole("block_count")

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.whole("embedding_length")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        heads = self.whole("attention.head_count")
        return self.whole("attention.key_length", self.hidden // max(heads, 1))


def config_of(header: GgufHeader) -> tuple[Any, Architecture]:
    """Return transformers' config of a file, and how its tensors are read.

    Raises:
        SpecError: its architecture is not known here, or its keys do not describe a model.
    """
    architecture = architecture_of(header)
    keys = Keys(header)
    _check_blocks(keys)
    settings = {**_common(keys, architecture), **architecture.more(keys)}
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[settings.pop("model_type", architecture.model_type)]
    computed = {name for name in settings if isinstance(getattr(kind, name, None), property)}
    try:
        return kind(**{name: value for name, value in settings.items() if name not in computed}), architecture
    except Exception as error:  # whatever a config's class has against a stranger's numbers
        raise refused(header.place, f"its keys describe no model ({type(error).__name__})") from error


def architecture_of(header: GgufHeader) -> Architecture:
    """Return how a file is read.

    Raises:
        SpecError: it is an adapter, a projector or the like, or of an architecture that is not known here.
    """
    kind = header.text("general.type", "model")
    if kind == "adapter":
        raise refused(header.place, "it is an adapter, not a model", "Name the model that it belongs to.")
    if kind not in ("model", ""):
        raise refused(header.place, f"it is a {kind}, not a model", "Name the model's own file.")
    arch = header.arch
    if arch in _OTHERS:
        raise refused(header.place, _OTHERS[arch], "Name the language model's own file.")
    found = ARCHITECTURES.get(arch)
    if found is None:
        raise refused(
            header.place,
            f"its architecture is {arch[:40]!r}, and nbtune reads {', '.join(sorted(ARCHITECTURES))}",
            "Name the model's Hub id or its folder of safetensors instead.",
        )
    return found


def _check_blocks(keys: Keys) -> None:
    """See that the file has the blocks that it tells of: as many are built."""
    numbers = {name.split(".")[1] for name in keys.header.tensors if name.startswith("blk.")}
    if numbers != {str(i) for i in range(min(keys.layers, len(numbers) + 1))} or not numbers:
        raise refused(keys.header.place, f"it tells of {keys.layers:,} blocks, and holds those of {len(numbers):,}")


def _common(keys: Keys, architecture: Architecture) -> dict[str, Any]:
    header = keys.header
    context = keys.whole("context_length")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise refused(header.place, "it holds no embedding of tokens (token_embd.weight)")
    if not 0 < context <= _MOST_CONTEXT:
        raise refused(header.place, f"its context is {context:,} tokens")
    heads = keys.whole("attention.head_count")
    norm = "attention.layer_norm_epsilon" if architecture.layer_norm else "attention.layer_norm_rms_epsilon"
    epsilon = keys.real(norm)
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": keys.hidden,
        "num_hidden_layers": keys.layers,
        "intermediate_size": keys.whole("feed_forward_length", 4 * keys.hidden),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": keys.head_dim,
        "max_position_embeddings": context,
        **({"layer_norm_eps": epsilon, "layer_norm_epsilon": epsilon} if architecture.layer_norm else {}),
        **({} if architecture.layer_norm else {"rms_norm_eps": epsilon}),
        "rope_parameters": rope_parameters(header, keys.head_dim, context),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "use_cache": True,
    }


def _biases(keys: Keys) -> dict[str, Any]:
    return {"attention_bias": keys.holds("attn_q.bias"), "mlp_bias": keys.holds("ffn_up.bias")}


def _llama(keys: Keys) -> dict[str, Any]:
    if keys.whole("expert_count", 0):
        experts = {
            "num_local_experts": keys.whole("expert_count"),
            "num_experts_per_tok": keys.whole("expert_used_count"),
        }
        return {"model_type": "mixtral", "sliding_window": None, **experts}
    return _biases(keys)


def _windowless(keys: Keys) -> dict[str, Any]:
    """Turn Qwen's windows off: llama.cpp runs none."""
    return {"use_sliding_window": False}


def _qwen3(keys: Keys) -> dict[str, Any]:
    return {**_windowless(keys), "attention_bias": keys.holds("attn_q.bias")}


def _experts(keys: Keys) -> dict[str, Any]:
    return {
        "num_experts": keys.whole("expert_count"),
        "num_experts_per_tok": keys.whole("expert_used_count"),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length", 0) or _first(keys, "ffn_gate_exps.weight")[1],
    }


def _first(keys: Keys, part: str) -> tuple[int, ...]:
    stored = keys.header.tensors.get(f"blk.0.{part}")
    if stored is None or len(stored.shape) < 2:
        raise refused(keys.header.place, f"it holds no blk.0.{part} of two dimensions or more")
    return stored.shape


def _qwen2_moe(keys: Keys) -> dict[str, Any]:
    shared = _first(keys, "ffn_gate_shexp.weight")[0]
    return {
        **_windowless(keys), **_experts(keys), "shared_expert_intermediate_size": shared, "norm_topk_prob": False,
    }  # fmt: skip


def _qwen3_moe(keys: Keys) -> dict[str, Any]:
    return {**_windowless(keys), **_experts(keys), "norm_topk_prob": True}


def _olmoe(keys: Keys) -> dict[str, Any]:
    found = _experts(keys)
    return {**found, "intermediate_size": found.pop("moe_intermediate_size"), "norm_topk_prob": False}


def _phi3(keys: Keys) -> dict[str, Any]:
    window = keys.whole("attention.sliding_window", 0)
    return {
        "sliding_window": window or None,
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
    return {
        **_gemma_scale(keys, 46),
        "sliding_window": keys.whole("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.real("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys) -> dict[str, Any]:
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(keys.layers)]
    everywhere = rope_parameters(keys.header, keys.head_dim, keys.whole("context_length"), unsaid=1e6)
    return {
        **_gemma_scale(keys, 62),
        "sliding_window": keys.whole("attention.sliding_window", 1024),
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": everywhere,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }


def _granite(keys: Keys) -> dict[str, Any]:
    return {
        **_biases(keys),
        "attention_multiplier": keys.real("attention.scale"),
        "embedding_multiplier": keys.real("embedding_scale"),
        "residual_multiplier": keys.real("residual_scale"),
        "logits_scaling": keys.real("logit_scale"),
    }


def _granite_moe(keys: Keys) -> dict[str, Any]:
    if keys.holds("ffn_gate_shexp.weight"):
        raise refused(keys.header.place, "its blocks have a shared expert, which is not read", "Name its Hub id.")
    found = _experts(keys)
    found.pop("moe_intermediate_size")
    found["num_local_experts"] = found.pop("num_experts")
    return {**_granite(keys), **found}


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
    return {
        "d_model": keys.hidden,
        "n_heads": keys.whole("attention.head_count"),
        "n_layers": keys.layers,
        "max_seq_len": keys.whole("context_length"),
        "expansion_ratio": keys.whole("feed_forward_length", 4 * keys.hidden) // max(keys.hidden, 1),
        "no_bias": True,
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": int(keys.real("attention.max_alibi_bias", 8.0)),
            "clip_qkv": clip or None,
        },
    }


def _gpt_oss(keys: Keys) -> dict[str, Any]:
    found = _experts(keys)
    found["num_local_experts"] = found.pop("num_experts")
    return {
        **found,
        "intermediate_size": found.pop("moe_intermediate_size"),
        "sliding_window": keys.whole("attention.sliding_window"),
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(keys.layers)],
    }


def _olmo2(keys: Keys) -> dict[str, Any]:
    if keys.whole("attention.sliding_window", 0):
        raise refused(keys.header.place, "it is an OLMo 3, whose windows are not read", "Name its Hub id.")
    return {"attention_bias": False}


ARCHITECTURES: dict[str, Architecture] = {
    "falcon": Architecture("falcon", _falcon, layer_norm=True),
    "gemma": Architecture("gemma", _gemma, norm_plus_one=True),
    "gemma2": Architecture("gemma2", _gemma2, norm_plus_one=True),
    "gemma3": Architecture("gemma3_text", _gemma3, norm_plus_one=True),
    "gpt-oss": Architecture("gpt_oss", _gpt_oss),
    "granite": Architecture("granite", _granite, permute=True),
    "granitemoe": Architecture("granitemoe", _granite_moe, permute=True),
    "llama": Architecture("llama", _llama, permute=True),
    "mpt": Architecture("mpt", _mpt, layer_norm=True),
    "olmo2": Architecture("olmo2", _olmo2),
    "olmoe": Architecture("olmoe", _olmoe),
    "phi2": Architecture("phi", _phi, layer_norm=True),
    "phi3": Architecture("phi3", _phi3),
    "qwen2": Architecture("qwen2", _windowless),
    "qwen2moe": Architecture("qwen2_moe", _qwen2_moe),
    "qwen3": Architecture("qwen3", _qwen3),
    "qwen3moe": Architecture("qwen3_moe", _qwen3_moe),
    "smollm3": Architecture("smollm3", _smollm3, permute=True),
}
