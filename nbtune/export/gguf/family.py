"""What a family of models is to a GGUF file: how its metadata are written, and which tensors its weights become."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nbtune.errors import ExportError
from nbtune.export.gguf import deepseek, states
from nbtune.export.gguf.experts import is_stack, layer_of, single_expert, split_stack
from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.rope import rope_metadata, rope_tensors
from nbtune.export.gguf.tensors import GgufTensor, Rows, mapped, parted, permuted, plain, stacked
from nbtune.export.merge import MergedModel
from nbtune.models.config_numbers import CHOSEN, EXPERTS

# Buffers that old checkpoints hold, and that are computed.
_COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")
_FURTHER = re.compile(r"(?:model\.)?mtp\.")
_HEAD = "output.weight"


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
        parts: weights of whose rows the file's tensors are made, by those tensors' names: of (model, config, source).
        columns: weights whose inputs the file has in another order: of (config, source).
        attends: how many heads have keys in each layer, where layers differ: of the config.
        widths: an MLP's width, or one for each layer, where the config does not say it: of (config, model).
        instead: of the config, the family that it is written as.
        moe: experts are stacked. turned: their matrices lie turned. in_turn: gates and ups lie in turn.
        window, unsaid_window: whether its layers see a window of the text, see `Config.window`.
        windows: the architecture runs the family's sliding windows. (llama.cpp's "llama" and "qwen" know none, and it
            has switched off those of "phi3".)
        lacking: of the config and the names of tensors that are there: what llama.cpp asks for beside them.
        keyed: how the names of small weights end that stand among a file's keys, one for each layer.
        note: what a person should know of such files.
        stack: of weights that lie one behind the other in a tensor of the file: its name, and which of them one is.
        scaled: of experts' last weights, the one whose numbers multiply what each returns, an adapter's part, too.
        latent: attention is by latent vectors.
        factors: the rotary scaling whose factors, one for each frequency, llama.cpp reads.
        unbiased: words in names of tensors whose biases llama.cpp has no place for.
        head: llama.cpp wants a head of its own, where the model's is its embedding.
        ties: transformers makes the head the embedding where the config says so.
        states: it has states, and no attention.
        within: it also sees or hears, and its language model stands within; of the rest nothing is written.
    """

    arch: str
    check: Callable[[Config], None] | None = None
    extra: Callable[[Config, Any], None] | None = None
    permute: bool = False
    norm_plus_one: bool = False
    layer_norm: bool = False
    change: Callable[[MergedModel, Config, str, str], GgufTensor | None] | None = None
    parts: Callable[[MergedModel, Config, str], dict[str, Rows] | None] | None = None
    columns: Callable[[Config, str], Rows | None] | None = None
    attends: Callable[[Config], list[int]] | None = None
    widths: Callable[[Config, MergedModel], int | list[int]] | None = None
    instead: Callable[[Config], Family] | None = None
    moe: bool = False
    turned: bool = False
    in_turn: bool = False
    window: str = ""
    unsaid_window: int = 0
    windows: bool = False
    rope: bool = True
    lacking: Callable[[Config, set[str]], list[GgufTensor]] | None = None
    keyed: dict[str, str] = field(default_factory=dict)
    note: str = ""
    stack: Callable[[str], tuple[str, int] | None] | None = None
    scaled: Callable[[str], str] | None = None
    latent: bool = False
    factors: str = ""
    unbiased: tuple[str, ...] = ()
    head: bool = False
    ties: bool = True
    states: bool = False
    within: bool = False
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
        writer.add_feed_forward_length(self.widths(config, model) if self.widths else int(ffn))
        writer.add_head_count(config.heads)
        writer.add_head_count_kv(self.attends(config) if self.attends else config.kv_heads)
        if config.get("head_dim") is not None and not self.latent:
            writer.add_key_length(config.head_dim_in("full_attention"))
            writer.add_value_length(config.head_dim_in("full_attention"))
        if self.layer_norm:
            writer.add_layer_norm_eps(
                float(config.get("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", default=1e-5))
            )
        else:
            epsilon = config.get("rms_norm_eps", "layer_norm_epsilon", "norm_eps", default=1e-6)
            writer.add_layer_norm_rms_eps(float(epsilon))
        writer.add_vocab_size(model.shape(model.embedding or "")[0])
        if self.rope:
            writer.add_rope_dimension_count(config.rotary_dim)
            rope_metadata(config, writer)
        if self.moe:
            writer.add_expert_count(config.same(*EXPERTS))
            writer.add_expert_used_count(config.same(*CHOSEN))
        for end, key in self.keyed.items():
            found = {source: model.number(source) for source in model.names if source.endswith(end)}
            writer.add_array(key, [found[source] for source in sorted(found, key=layer_of)])
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
        notes = [self.note] if self.note else []
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
            read = self._of_text(source)
            if (
                not read
                or read.endswith(tuple(self.keyed))
                or _COMPUTED.search(read)
                or (config.tied and self.ties and read == "lm_head.weight")
            ):
                continue
            if self.moe and deepseek.is_of_more_layers(config, source):
                continue  # which predict further tokens
            if expert := (self.moe and single_expert(source)) or (self.stack and self.stack(read)):
                experts.setdefault(expert[0], {})[expert[1]] = source
                continue
            made += self._one(config, model, names, source)
        for key, found in experts.items():
            if gone := self.moe and set(range(config.same(*EXPERTS))) - set(found):
                raise ExportError(
                    f"the model lacks expert {min(gone)} of {key!r}",
                    place=str(model.source.base),
                    fix="see that the folder is whole.",
                )
            made.append(stacked(model, [found[i] for i in sorted(found)], key))
        if self.head and model.embedding and all(tensor.name != _HEAD for tensor in made):
            made.append(plain(model, model.embedding, _HEAD))
        made += rope_tensors(config, self.factors) if self.rope else []
        made += self.lacking(config, {tensor.name for tensor in made}) if self.lacking else []
        return sorted(made, key=_order)

    def _one(self, config: Config, model: MergedModel, names: Any, source: str) -> list[GgufTensor]:
        if self.moe and is_stack(source):
            return split_stack(model, source, turned=self.turned, in_turn=self.in_turn)
        if self.parts and (parts := self.parts(model, config, source)):
            return parted(model, source, parts)
        name = self._name(names, source)
        if name is None or (name.endswith(".bias") and any(word in name for word in self.unbiased)):
            raise ExportError(
                f"llama.cpp's {self.arch!r} has no place for the weight {source!r}",
                place=str(model.source.base),
                fix="export the merged safetensors or the adapter instead.",
            )
        if self.change and (tensor := self.change(model, config, source, name)):
            return [tensor]
        if self.columns and (reorder := self.columns(config, source)):
            return [mapped(model, source, name, reorder)]
        if self.permute and ".attn_q." in name:
            return [permuted(model, source, name, config.heads, config.rotary_dim)]
        if self.permute and ".attn_k." in name:
            return [permuted(model, source, name, config.kv_heads, config.rotary_dim)]
        if self.norm_plus_one and name.endswith("norm.weight"):
            return [mapped(model, source, name, lambda weight: weight + 1)]
        return [plain(model, source, name, full="ffn_gate_inp" in name)]

    def _of_text(self, source: str) -> str:
        """Return a weight's name in a model of text alone; "" where it is of what sees, or predicts further tokens."""
        if _FURTHER.match(source):
            return ""
        if not self.within or source.startswith("lm_head."):
            return source
        return source.replace("language_model.", "", 1) if "language_model." in source else ""

    def _name(self, names: Any, source: str) -> str | None:
        source = self._of_text(source)
        for pattern, name in self.names.items():
            if match := re.fullmatch(pattern, source):
                return match.expand(name)
        return names.get_name(source, try_suffixes=(".weight", ".bias"))


def _order(tensor: GgufTensor) -> tuple[int, int, str]:
    match = re.match(r"blk\.(\d+)\.", tensor.name)
    if match:
        return (1, int(match[1]), tensor.name)
    return (2 if tensor.name.startswith("output") else 0, 0, tensor.name)
