"""Gemma 3n and 4: keys that later layers share, inputs of each layer's own; 3n's several streams, 4's heads of two
widths, and its experts beside the MLP."""

from __future__ import annotations

import re
from typing import Any

from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.single_families import check_gemma, refuse
from nbtune.export.gguf.tensors import GgufTensor, of_rows, unused
from nbtune.export.merge import MergedModel
from nbtune.models.gguf_file.gemmas import SHARED_FROM_3N, kinds_3n, sparse_3n

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


# What llama.cpp's Gemma 3n has in itself.
_OWN_3N = {
    "altup_num_inputs": 4, "altup_active_idx": 0, "laurel_rank": 64, "hidden_size_per_layer_input": 256,
    "altup_correct_scale": True,
}  # fmt: skip
_NARROWEST = 4096  # an MLP: llama.cpp reckons a deviation with one number fewer, which is seen in narrower ones
NOTE_3N = (
    "llama.cpp reckons by how much numbers of an MLP differ with one of them fewer than the model does: where its "
    "sparse gates begin is moved by some hundred thousandths, as in everybody's files of this family"
)
_STREAMS = re.compile(r"model\.altup_(unembed_)?projections\.(\d+)\.weight")
NAMES_3N = {r"model\.layers\.(\d+)\.altup\.correct_output_scale": r"blk.\1.altup_correct_scale.weight"}


def check_3n(config: Config) -> None:
    """Refuse all but the released models' streams, sharing and sparsity."""
    check_gemma(config)
    odd = [key for key, value in _OWN_3N.items() if config.get(key, default=value) != value]
    refuse(config, bool(odd), f"its {', '.join(odd)} are not the released models'")
    refuse(config, bool(config.get("attention_bias")), "its attention has biases")
    for kind in (_FULL, _SLIDING):
        refuse(config, config.rope(kind)["rope_type"] != "default", "its rotary angles are scaled")
    usual = kinds_3n(config.layers)
    refuse(config, list(config.get("layer_types", default=usual)) != usual, "its global layers are not every fifth")
    refuse(config, config.layers < 5, "no layer sees all of the text")
    shared = int(config.get("num_kv_shared_layers", default=0))
    refuse(
        config, shared != max(config.layers - SHARED_FROM_3N, 0), f"not its layers from {SHARED_FROM_3N} on share keys"
    )
    sparse = sparse_3n(config.layers)
    said = config.get("activation_sparsity_pattern", default=sparse)
    refuse(config, list(said) != sparse, f"not its first {sum(map(bool, sparse))} layers are sparse, by 0.95")
    refuse(config, config.same("intermediate_size") < _NARROWEST, f"its MLPs are narrower than {_NARROWEST}")
    refuse(config, not config.get("final_logit_softcapping", default=30.0), "it caps no logits")


def metadata_3n(config: Config, writer: Any) -> None:
    """Write what a window is, and the sizes that files of this family tell."""
    writer.add_sliding_window(int(config.need("sliding_window")))
    writer.add_rope_freq_base_swa(float(config.rope(_SLIDING)["rope_theta"]))
    writer.add_final_logit_softcapping(float(config.get("final_logit_softcapping", default=30.0)))
    writer.add_embedding_length_per_layer_input(int(config.need("hidden_size_per_layer_input")))
    writer.add_altup_active_idx(int(config.need("altup_active_idx")))
    writer.add_altup_num_inputs(int(config.need("altup_num_inputs")))
    writer.add_shared_kv_layers(int(config.get("num_kv_shared_layers", default=0)))


def width_3n(config: Config, model: MergedModel) -> int:
    """Return how wide every MLP is."""
    return config.same("intermediate_size")


def stream(source: str) -> tuple[str, int] | None:
    """Return which tensor of the file a stream's projection belongs to, and which of its matrices it is."""
    if not (found := _STREAMS.fullmatch(source)):
        return None
    return f"altup_{'unembd_' if found[1] else ''}proj.weight", int(found[2])


def lacking_3n(config: Config, there: set[str]) -> list[GgufTensor]:
    """Return keys' and values' weights of the layers that share others', where the model's files hold none."""
    keys, width = config.kv_heads * config.head_dim, config.head_dim
    shapes = {"attn_k": (keys, config.hidden), "attn_v": (keys, config.hidden), "attn_k_norm": (width,)}
    names = {
        f"blk.{i}.{name}.weight": shape for i in range(SHARED_FROM_3N, config.layers) for name, shape in shapes.items()
    }
    return [unused(name, shape) for name, shape in names.items() if name not in there]
