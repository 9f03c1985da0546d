"""What a GGUF file says of Gemma 3n's and 4's layers: shared keys, inputs of each layer's own, streams, experts."""

from __future__ import annotations

from typing import Any

from nbtune.models.gguf_file import windows
from nbtune.models.gguf_file.header import refused
from nbtune.models.gguf_file.keys import Keys
from nbtune.models.gguf_file.rotary import rope_parameters

_FULL, _SLIDING = "full_attention", "sliding_attention"
_USUAL_CAP = 30.0  # llama.cpp's, where a file says none


def gemma4(keys: Keys) -> dict[str, Any]:
    """Return a Gemma 4's settings."""
    kinds = _kinds(keys)
    heads = keys.each("attention.head_count_kv")
    full = [kind == _FULL for kind in kinds]
    wide, narrow = keys.whole("attention.key_length"), keys.whole("attention.key_length_swa")
    alike = not keys.holds("attn_v.weight", full.index(True) if True in full else 0)
    fewer = {number for number, whole in zip(heads, full, strict=True) if whole}
    narrow_heads = {number for number, whole in zip(heads, full, strict=True) if not whole}
    if max(len(fewer), len(narrow_heads)) != 1 or not (alike or fewer == narrow_heads):
        raise refused(keys.header.place, "its layers' key heads are not as many as a Gemma 4's", "Name its Hub id.")
    shared, inputs = keys.whole("attention.shared_kv_layers", 0), keys.whole("embedding_length_per_layer_input", 0)
    widths = keys.each("feed_forward_length")
    double = shared > 0 and widths[-1] == 2 * widths[0]
    if widths != [widths[0] * (2 if double and i >= keys.layers - shared else 1) for i in range(keys.layers)]:
        raise refused(keys.header.place, "its layers' MLPs are of other widths than a Gemma 4's", "Name its Hub id.")
    turned = {"rope_type": "default", "rope_theta": keys.real("rope.freq_base_swa", 10000.0)}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": kinds,
        "head_dim": narrow,
        "global_head_dim": wide,
        "num_key_value_heads": narrow_heads.pop(),
        "num_global_key_value_heads": fewer.pop(),
        "intermediate_size": widths[0],
        "use_double_wide_mlp": double,
        "num_kv_shared_layers": shared,
        "attention_k_eq_v": alike,
        "hidden_size_per_layer_input": inputs,
        "vocab_size_per_layer_input": keys.header.tensors["token_embd.weight"].shape[0],
        "sliding_window": windows.window(keys),
        "final_logit_softcapping": keys.real("final_logit_softcapping", _USUAL_CAP) or None,
        "rope_parameters": {
            _FULL: rope_parameters(keys.header, wide, keys.whole("context_length")),
            _SLIDING: turned,
        },
        **_experts(keys),
    }


def _kinds(keys: Keys) -> list[str]:
    said = keys.header.metadata.get(f"{keys.arch}.attention.sliding_window_pattern")
    if not isinstance(said, list) or len(said) != keys.layers:
        raise refused(keys.header.place, "it does not say which of its layers see a window")
    return [_SLIDING if one else _FULL for one in said]


def _experts(keys: Keys) -> dict[str, Any]:
    if not keys.whole("expert_count", 0):
        return {}
    return {
        "enable_moe_block": True,
        "num_experts": keys.whole("expert_count"),
        "top_k_experts": keys.whole("expert_used_count"),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
    }


SHARED_FROM_3N = 20
"""The layer from which on none of a Gemma 3n has keys; its files hold some nevertheless."""
_SPARSE = 10  # layers of a Gemma 3n whose MLPs are


def kinds_3n(layers: int) -> list[str]:
    """Return which of a Gemma 3n's layers see a window: all but every fifth."""
    return [_SLIDING if (i + 1) % 5 else _FULL for i in range(layers)]


def sparse_3n(layers: int) -> list[float]:
    """Return how sparse the gates of each of a Gemma 3n's layers are."""
    return [0.95 if i < _SPARSE else 0.0 for i in range(layers)]


def gemma3n(keys: Keys) -> dict[str, Any]:
    """Return a Gemma 3n's settings.

    Raises:
        SpecError: its angles are scaled: no file of one does so, and there is a base of each kind of layers alone.
    """
    if rope_parameters(keys.header, keys.head_dim, keys.whole("context_length"))["rope_type"] != "default":
        said = f"{keys.arch}.rope.scaling.factor, rope.scaling.type or rope.scale_linear"
        raise refused(keys.header.place, f"its {said} scales angles", "Name its Hub id.")
    theta = {_FULL: keys.real("rope.freq_base"), _SLIDING: keys.real("rope.freq_base_swa", 10000.0)}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": windows.kinds(keys, 5),
        "num_kv_shared_layers": max(keys.layers - SHARED_FROM_3N, 0),
        "activation_sparsity_pattern": sparse_3n(keys.layers),
        "vocab_size_per_layer_input": keys.header.tensors["token_embd.weight"].shape[0],
        "sliding_window": windows.window(keys),
        "final_logit_softcapping": keys.real("final_logit_softcapping", _USUAL_CAP),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in theta.items()},
    }
