"""A model's config.json read the same way whatever transformers wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nbtune.errors import ExportError


class Config:
    """The text model's part of a config.json, with the places that moved over time looked up in all of them.

    Args:
        raw: the JSON object.
        place: the file, for errors.
        unsaid: what the model's class says where the file is silent.
    """

    def __init__(
        self, raw: dict[str, Any], place: str = "config.json", unsaid: Mapping[str, Any] | None = None
    ) -> None:
        self.place, self._unsaid = place, unsaid or {}
        self.model_type = str(raw.get("model_type", ""))
        text = raw.get("text_config")
        self.raw: dict[str, Any] = {**raw, **text} if isinstance(text, dict) else raw
        if isinstance(inner := raw.get("ffn_config"), dict):  # DBRX
            inner = {**(self._unsaid.get("ffn_config") or {}), **inner}
            self.raw = {**inner, "moe_k": inner.get("moe_top_k"), "hidden_size": raw.get("d_model"), **self.raw}
        self.tied = bool(raw.get("tie_word_embeddings", self.raw.get("tie_word_embeddings", False)))

    def get(self, *keys: str, default: Any = None) -> Any:
        """Return the first of `keys` that is there and not null; where none is, what the model's class says."""
        for said in (self.raw, self._unsaid):
            for key in keys:
                if said.get(key) is not None:
                    return said[key]
        return default

    def need(self, *keys: str) -> Any:
        """Return what `get` does, but it must be there.

        Raises:
            ExportError: none of them is.
        """
        value = self.get(*keys)
        if value is None:
            raise ExportError(f"config.json has no {keys[0]!r}", place=self.place, fix="see that the folder is whole.")
        return value

    def same(self, *keys: str) -> int:
        """Return a number that may be said once, or for each layer, and then must be the same for all.

        Raises:
            ExportError: it is not there, or layers have different ones.
        """
        value = self.need(*keys)
        numbers = {int(one) for one in (value if isinstance(value, list) else [value])}
        if len(numbers) != 1:
            raise ExportError(
                f"{self.model_type}: its layers have different {keys[0]!r}, and llama.cpp does not run that",
                place=self.place,
                fix="export the merged safetensors or the adapter instead.",
            )
        return numbers.pop()

    @property
    def layers(self) -> int:
        """Number of blocks; some files only list what each of them is."""
        listed = self.get("layers_block_type", "hybrid_override_pattern")
        if listed is not None and self.get("num_hidden_layers") is None:
            return len(listed)
        return int(self.need("num_hidden_layers", "n_layers", "n_layer"))

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self.need("hidden_size", "d_model", "n_embd"))

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return int(self.need("num_attention_heads", "n_heads", "n_head"))

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        if self.get("multi_query") and not self.get("new_decoder_architecture"):
            return 1  # Falcon
        inner = (self.get("attn_config", default={}) or {}).get("kv_n_heads")  # MPT
        return int(inner or self.get("num_key_value_heads", "num_kv_heads", default=self.heads))

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return int(self.get("head_dim", default=self.hidden // self.heads))

    def head_dim_in(self, kind: str) -> int:
        """Return the width of a head in layers of `kind`, which may differ from the rest's."""
        own = self.get("per_layer_config", default={})
        layers = (i for i, one in enumerate(self.get("layer_types", default=())) if one == kind)
        return int(own.get(str(next(layers, "")), {}).get("head_dim") or self.head_dim)

    @property
    def context(self) -> int:
        """Longest sequence that the model was made for, in tokens."""
        return int(self.get("max_position_embeddings", "max_seq_len", "n_positions", "seq_length", default=2048))

    def window(self, kind: str, unsaid: int = 0) -> int | None:
        """Return how many tokens each sees in some of the layers.

        Args:
            kind: where transformers puts a window on this kind of model: "" nowhere, ``always``, or ``switched``: only
                with `use_sliding_window`.
            unsaid: its size where config.json says nothing; null says that there is none.
        """
        size = self.raw.get("sliding_window", unsaid)
        if not size or not kind:
            return None
        if kind == "switched":
            kinds = self.get("layer_types")
            some = "sliding_attention" in kinds if kinds else self.get("max_window_layers", default=28) < self.layers
            if not self.get("use_sliding_window") or not (some or self.model_type == "qwen3_moe"):
                return None
        return int(size)

    def rope(self, kind: str = "full_attention") -> dict[str, Any]:
        """Return the rotary parameters (of layers of `kind` if they differ): ``rope_type``, ``rope_theta``, what it
        needs."""
        parameters = self.get("rope_parameters", default={})
        if isinstance(parameters.get(kind), dict):
            parameters = parameters[kind]
        old = self.get("rope_scaling", default={}) if "rope_type" not in parameters else {}
        merged = {**old, **parameters}
        merged.setdefault("rope_type", old.get("type", "default"))
        merged.setdefault("rope_theta", float(self.get("rope_theta", "rotary_emb_base", default=10000.0)))
        return merged

    @property
    def rotary_dim(self) -> int:
        """How many of a head's numbers are rotated."""
        if self.get("qk_rope_head_dim") is not None:  # attention by latent vectors
            return int(self.get("qk_rope_head_dim"))
        rope, width = self.rope(), self.head_dim_in("full_attention")
        if rope["rope_type"] == "proportional":
            return width  # the rest of which are turned by nothing
        part = rope.get("partial_rotary_factor", self.get("partial_rotary_factor", "rotary_pct", default=1.0))
        return int(width * float(part))


class Unwritten:
    """A writer of GGUF metadata that writes nothing: what follows a config can be asked beforehand."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
