"""A model's config.json for others: transformers 4 looks for the rotary embedding by older names than 5 writes.

It takes no notice of `rope_parameters`, and would run a model of another theta, without a word.
"""

from __future__ import annotations

from typing import Any

_OLDER = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
_APART = ("rope_theta", "partial_rotary_factor")  # older names stand beside the scaling, not in it


def with_older_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config in which the rotary embedding also stands by the names of transformers 4; both mean the same."""
    made = {key: with_older_names(value) if key == "text_config" else value for key, value in config.items()}
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return made
    if isinstance(rope.get("full_attention"), dict):
        if config.get("model_type") not in ("gemma3_text", "gemma3"):
            return made  # no older names for a theta of each kind of layer
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            made.setdefault("rope_local_base_freq", local["rope_theta"])
        rope = rope["full_attention"]
    names = _OLDER.get(str(config.get("model_type")), {})
    for key in _APART:
        if rope.get(key) is not None:
            made.setdefault(names.get(key, key), rope[key])
    scaling = {key: value for key, value in rope.items() if key not in _APART}
    if scaling.get("rope_type", "default") != "default":
        made.setdefault("rope_scaling", scaling)
    return made
