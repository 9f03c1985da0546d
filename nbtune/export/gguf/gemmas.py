"""Gemma 4: heads of two widths, keys that later layers share, inputs of each layer's own, experts beside the MLP."""

from __future__ import annotations

from typing import Any

from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.single_families import check_gemma, refuse
from nbtune.export.gguf.tensors import GgufTensor, of_rows
from nbtune.export.merge import MergedModel

_FULL, _SLIDING = "full_attention", "sliding_attention"
NAMES_4 = {
    r"model\.layers\.(\d+)\.layer_scalar": r"blk.\1.layer_output_scale.weight",
    r"model\.layers\.(\d+)\.router\.scale": r"blk.\1.ffn_gate_inp.scale",
    r"model\.layers\.(\d+)\.router\.per_expert_scale": r"blk.\1.ffn_down_exps.scale",
}


def check_4(config: Config) -> None:
    """Refuse what llama.cpp's Gemma 4 computes otherwise."""
    check_gemma(config)
    refuse(config, config.get("use_bidirectional_attention") == "all", "each token sees those behind it")
    refuse(config, bool(config.get("attention_bias")), "its attention has biases")
    refuse(config, config.rope(_SLIDING)["rope_type"] != "default", "its local layers' rotary angles are scaled")
    refuse(config, config.rope()["rope_type"] not in ("default", "proportional"), "its rotary angles are scaled")
    kinds = {_FULL, _SLIDING} - set(config.need("layer_types"))
    refuse(config, bool(kinds), "its layers are all of one kind")  # llama.cpp crashes as it loads such a file
    _check_sharing(config)


def _check_sharing(config: Config) -> None:
    """Refuse where later layers take other layers' keys than llama.cpp gives them: the last two of their own."""
    kinds, shared = list(config.need("layer_types")), int(config.get("num_kv_shared_layers", default=0))
    first = config.layers - shared
    for kind, back in ((_FULL, 1), (_SLIDING, 2)):
        wanted = shared and kind in kinds[first:]
        refuse(config, bool(wanted) and kinds[first - back] != kind, "its last layers share other layers' keys")


def metadata_4(config: Config, writer: Any) -> None:
    """Write which layers see a window, how wide their heads are, who shares keys, and what each layer is given."""
    kinds = list(config.need("layer_types"))
    narrow = config.head_dim_in(_SLIDING)
    writer.add_sliding_window(int(config.need("sliding_window")))
    writer.add_sliding_window_pattern([kind == _SLIDING for kind in kinds])
    writer.add_shared_kv_layers(int(config.get("num_kv_shared_layers", default=0)))
    writer.add_key_length_swa(narrow)
    writer.add_value_length_swa(narrow)
    writer.add_rope_dimension_count_swa(narrow)
    writer.add_rope_freq_base_swa(float(config.rope(_SLIDING)["rope_theta"]))
    writer.add_embedding_length_per_layer_input(int(config.get("hidden_size_per_layer_input", default=0)))
    cap = float(config.get("final_logit_softcapping", default=0.0))  # where none is said llama.cpp takes 30
    writer.add_final_logit_softcapping(cap)
    if config.get("enable_moe_block"):
        writer.add_expert_feed_forward_length(int(config.need("moe_intermediate_size")))


def change(model: MergedModel, config: Config, source: str, name: str) -> GgufTensor | None:
    """Give the layers' own inputs as many tokens as the embedding has; those beyond are what the first token is."""
    if not name.startswith("per_layer_token_embd") or not model.embedding:
        return None
    return of_rows(model, source, name, model.shape(model.embedding)[0])


def expert_scale(source: str) -> str:
    """Return the name of what multiplies the answers of a layer's experts."""
    start, _, kind = source.rpartition("experts.")
    return f"{start}router.per_expert_scale" if kind == "down_proj" else ""


def key_heads(config: Config) -> list[int]:
    """Return how many key heads each layer has: those that see all of the text may have others."""
    own = config.get("per_layer_config", default={})
    return [int(own.get(str(i), {}).get("num_key_value_heads") or config.kv_heads) for i in range(config.layers)]


def widths_4(config: Config, model: MergedModel) -> int | list[int]:
    """Return how wide each layer's MLP is: those that share keys may have twice the width."""
    width, shared = int(config.need("intermediate_size")), int(config.get("num_kv_shared_layers", default=0))
    wide = 2 if config.get("use_double_wide_mlp") else 1
    return [width * (wide if i >= config.layers - shared else 1) for i in range(config.layers)]
