"""The weights of a model's folder, made of a GGUF file's tensors: the way back from how llama.cpp keeps them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nbtune.models.gguf_file import rotary
from nbtune.models.gguf_file.architectures import Architecture
from nbtune.models.gguf_file.changes import (
    VALUES_IN_TURN,
    Change,
    by_head,
    by_key_head,
    delta_sizes,
    grouped,
    latent_heads,
    neighbours_apart,
    turned_back,
    values_apart,
)
from nbtune.models.gguf_file.gemmas import SHARED_FROM_3N
from nbtune.models.gguf_file.header import GgufHeader, Stored, refused
from nbtune.models.gguf_file.keys import Keys
from nbtune.models.gguf_file.numbers import ROOM, can_decode, numbers_in, values
from nbtune.untrusted import shortened

_DTYPES = ("F32", "F16")  # what a file of mostly these becomes; a quantised one becomes BF16
_STACK = re.compile(r"^(?P<start>.*\.)experts\.(?P<kind>gate_up_proj|up_proj|down_proj)$")
_TURNED = re.compile(r"^model\.layers\.(?P<block>\d+)\..*\.experts\.(?P<kind>gate_up|down)_proj(?P<bias>_bias)?$")
_KEYED = re.compile(r"model\.layers\.(\d+)\.mlp\.act_fn\.(alpha_p|alpha_n|beta|eps)")  # among a file's keys
# How transformers' files call single experts' gates, ups and downs.
_SINGLE = {
    **dict.fromkeys(("mixtral", "minimax_m2", "lfm2_moe"), ("w1", "w3", "w2")),
    "": ("gate_proj", "up_proj", "down_proj"),
}
_GRANITE = ("granitemoe", "granitemoeshared", "granitemoehybrid")  # with stacks of gates before ups, and other names
_TURNED_KINDS = ("gpt_oss", "llama4_text")
_STACKED = ("gemma4_text",)  # with such stacks, by the names that transformers has
_OLDER_NAMES = {
    "mixtral": (".mlp.", ".block_sparse_moe."),
    "minimax_m2": (".mlp.", ".block_sparse_moe."),
    "ernie4_5_moe": (".gate.moe_statics.", ".moe_statics."),
    "nemotron_h": ("model.", "backbone."),
    **dict.fromkeys(_GRANITE, ("_moe.router.weight", "_moe.router.layer.weight")),
}
# What llama.cpp has that the table of names does not.
_NAMES = {
    r".*\.layers\.(\d+)\.altup\.correct_output_scale": r"blk.\1.altup_correct_scale.weight",
    r".*\.layers\.(\d+)\.layer_scalar": r"blk.\1.layer_output_scale.weight",
    r".*\.layers\.(\d+)\.router\.scale": r"blk.\1.ffn_gate_inp.scale",
    r".*\.layers\.(\d+)\.router\.per_expert_scale": r"blk.\1.ffn_down_exps.scale",
    r".*\.layers\.(\d+)\.self_attn\.sinks": r"blk.\1.attn_sinks.weight",
    r".*\.layers\.(\d+)\..*\.dt_bias": r"blk.\1.ssm_dt.bias",
    r".*\.layers\.(\d+)\..*(?:e_score_correction|expert)_bias": r"blk.\1.exp_probs_b.bias",
}
# Of no matter for text: computed angles, and what Ollama's files see and hear with.
_WITHOUT_MEANING = re.compile(
    r"(?:^|\.)(?:rope_freqs|attn_rot_embd|rope_factors_(?:long|short))\.weight$|^(?:v|a|mm)\."
)


@dataclass(frozen=True)
class Part:
    """Rows of a stored tensor; a stack's matrices lie one under the other."""

    stored: Stored
    start: int
    count: int

    def jobs(self) -> Iterator[Callable[[], Any]]:
        """Yield what makes them in fp32, some at a time."""
        step = max(1, ROOM // self.stored.shape[-1])
        for start in range(self.start, self.start + self.count, step):
            yield partial(values, self.stored, start, min(step, self.start + self.count - start))


@dataclass(frozen=True)
class Weight:
    """One weight of the folder.

    Args:
        name: as transformers' files have it.
        shape: of it.
        dtype: safetensors' name.
        parts: what it is made of, one under the other.
        given: the one number that it is, which is among the file's keys.
        change: done in fp32 with the whole of it, or with every `together` parts; None: it is as it is stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]
    change: Change | None = None
    together: int = 0
    given: float | None = None

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return int(np.prod(self.shape, dtype=np.int64)) * (4 if self.dtype == "F32" else 2)

    def jobs(self) -> Iterator[Callable[[], Any]]:
        """Yield what makes its numbers in fp32, some rows after the other; a changed one's are made as a whole."""
        if self.given is not None:
            yield lambda: np.full(1, self.given, np.float32)
        if self.change is None:
            for part in self.parts:
                yield from part.jobs()
            return
        step = self.together or len(self.parts)
        for at in range(0, len(self.parts), step):
            yield partial(_changed, self.change, self.parts[at : at + step])


def _changed(change: Change, parts: tuple[Part, ...]) -> Any:
    made = [job() for part in parts for job in part.jobs()]
    if len({one.shape[1] for one in made}) > 1:
        made = [one.reshape(-1, 1) for one in made]
    with np.errstate(all="ignore"), fitting(parts[0].stored.file):
        out = change(np.concatenate(made))
    if not np.isfinite(out).all():
        raise refused(parts[0].stored.file, "some of its weights are numbers that no such model has")
    return out


@contextmanager
def fitting(file: Path) -> Iterator[None]:
    """Say of a file that its numbers of heads, groups and the like are not those of its weights.

    Raises:
        SpecError: they were not.
    """
    try:
        yield
    except (ValueError, ArithmeticError, IndexError) as error:
        raise refused(file, f"its numbers of heads or groups do not fit its weights ({str(error)[:80]})") from error


def main_dtype(header: GgufHeader) -> str:
    """Return of what most weights are made: fp32 and fp16 stay what they are, all else becomes bf16."""
    per: dict[str, int] = {}
    for stored in header.tensors.values():
        per[stored.encoding] = per.get(stored.encoding, 0) + numbers_in(stored)
    most = max(per, key=lambda encoding: per[encoding])
    return most if most in _DTYPES else "BF16"


def weights_of(header: GgufHeader, outline: Any, architecture: Architecture) -> list[Weight]:
    """Return all weights of a model's folder.

    Args:
        header: of the file.
        outline: the model of transformers, of tensors that hold nothing.
        architecture: how it is read.

    Raises:
        SpecError: a weight is missing, left over, or of another shape.
    """
    odd = sorted({s.encoding for s in header.tensors.values() if not can_decode(s.encoding)})
    if odd:
        raise refused(header.place, f"it holds weights of type {odd[0]}, which are not decoded", "Take another type.")
    made = _Making(header, outline, architecture)
    with fitting(header.place):
        weights = [weight for name, tensor in outline.state_dict().items() for weight in made.one(name, tensor)]
    left = sorted(set(header.tensors) - made.used)
    left = [
        name for name in left if not (_WITHOUT_MEANING.search(name) or _predicts(name, header) or _shares(name, header))
    ]
    left = [name for name in left if name not in rotary.TENSORS]
    if left:
        more = f" and {len(left) - 1} others" if len(left) > 1 else ""
        raise refused(
            header.place,
            f"it holds the weight {shortened(left[0])}{more}, for which transformers' "
            f"{outline.config.model_type} has no place",
            "Name the model's Hub id or its folder of safetensors instead.",
        )
    return weights


def _predicts(name: str, header: GgufHeader) -> bool:
    """Return whether a tensor is of a block behind the last, which predicts further tokens."""
    found = re.match(r"blk\.(\d+)\.", name)
    return found is not None and int(found[1]) >= Keys(header).layers


def _shares(name: str, header: GgufHeader) -> bool:
    """Return whether a tensor is for the keys or values of a Gemma 3n's layer that takes another's."""
    found = re.match(r"blk\.(\d+)\.attn_(?:k|v|k_norm)\.", name)
    return found is not None and header.arch == "gemma3n" and int(found[1]) >= SHARED_FROM_3N


class _Making:
    """Finds the stored tensors of each weight, and marks which were used."""

    def __init__(self, header: GgufHeader, outline: Any, architecture: Architecture) -> None:
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        self.header, self.config, self.architecture = header, outline.config, architecture
        self.kind = outline.config.model_type
        arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == header.arch)
        self.names = get_tensor_name_map(MODEL_ARCH(arch), outline.config.num_hidden_layers)
        self.dtype, self.used = main_dtype(header), set[str]()

    def one(self, name: str, tensor: Any) -> list[Weight]:
        """Return the weight, or weights, that one of the model's is in its files."""
        if name == "lm_head.weight" and self.config.tie_word_embeddings:
            return []
        if found := _KEYED.fullmatch(name):
            return [Weight(name, tuple(tensor.shape), "F32", (), given=self._number(int(found[1]), found[2]))]
        if self.kind in _TURNED_KINDS and (found := _TURNED.match(name)):
            return [self._turned(name, found, tuple(tensor.shape))]
        if found := _STACK.match(name):
            return self._experts(self._own(found["start"]), found["kind"], tuple(tensor.shape))
        own, shape = self._own(name), tuple(tensor.shape)
        if several := self._several(own, shape):
            parts, change = several
            return [Weight(own, shape, self.dtype, parts, change)]
        wanted = self._named(own)
        turned = self.kind == "gpt2" and len(shape) == 2 and ".h." in name  # its linear layers are stored (in, out)
        parts = self._parts(wanted, shape[::-1] if turned else shape)
        dtype = "F32" if len(shape) == 1 and parts[0].stored.encoding == "F32" else self.dtype
        return [Weight(own, shape, dtype, parts, turned_back if turned else self._change(wanted, shape))]

    def _number(self, layer: int, kind: str) -> float:
        numbers = self.header.items(f"xielu.{kind}", float)
        if layer >= len(numbers) or not np.isfinite(numbers).all():
            raise refused(self.header.place, f"its xielu.{kind} are no numbers of each layer")
        return float(numbers[layer])

    def _own(self, name: str) -> str:
        """Return what transformers' files call a weight, or the beginning of one."""
        old, new = _OLDER_NAMES.get(self.kind, ("", ""))
        return name.replace(old, new) if old else name

    def _named(self, name: str) -> str:
        for pattern, stored in _NAMES.items():
            if found := re.fullmatch(pattern, name):
                return found.expand(stored)
        if self.kind == "bloom":  # of whose blocks the table knows only names without this
            name = name.removeprefix("transformer.")
        found_name = self.names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found_name is None:
            raise refused(self.header.place, f"its architecture has no name for {name}", "Name its Hub id instead.")
        return str(found_name)

    def _several(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[Part, ...], Change | None] | None:
        """Return what a weight is made of, where that is more than one tensor, or one of another name."""
        block = f"blk.{found[1]}." if (found := re.search(r"\.layers\.(\d+)\.", name)) else ""
        if ".shared_mlp." in name and self.kind in _GRANITE:
            end = "_shexp.weight" if f"{block}ffn_down_shexp.weight" in self.header.tensors else ".weight"
            if name.endswith("output_linear.weight"):
                return self._parts(f"{block}ffn_down{end}", shape), None
            half = (shape[0] // 2, shape[1])
            return tuple(part for one in ("gate", "up") for part in self._parts(f"{block}ffn_{one}{end}", half)), None
        if stream := re.fullmatch(r"model\.altup_(unembed_)?projections\.(\d+)\.weight", name):
            stack = self._stack(
                f"altup_{'unembd_' if stream[1] else ''}proj.weight", (self.config.altup_num_inputs - 1, *shape)
            )
            return (Part(stack, int(stream[2]) * shape[0], shape[0]),), None
        if under := re.fullmatch(r"transformer\.blocks\.(\d+)\.ffn\.experts\.mlp\.(w1|v1|w2)", name):
            return self._one_under_the_other(int(under[1]), under[2], shape)
        if name.endswith(".linear_attn.in_proj_qkvz.weight"):
            keys, width, each = delta_sizes(self.config)
            rows = {"attn_qkv": keys * (2 * width + each), "attn_gate": keys * each}
            parts = [self._parts(f"{block}{one}.weight", (count, shape[1]))[0] for one, count in rows.items()]
            return tuple(parts), by_key_head(self.config, shape)
        if name.endswith(".kv_b_proj.weight") and f"{block}attn_kv_b.weight" not in self.header.tensors:
            nope, value = self.config.qk_nope_head_dim, self.config.v_head_dim
            heads, latent = self.config.num_attention_heads, shape[1]
            stacks = {"k": (heads, latent, nope), "v": (heads, value, latent)}
            parts = [self._parts(f"{block}attn_{one}_b.weight", size)[0] for one, size in stacks.items()]
            return tuple(parts), latent_heads(heads, nope, value, latent)
        return None

    def _one_under_the_other(
        self, block: int, kind: str, shape: tuple[int, ...]
    ) -> tuple[tuple[Part, ...], Change | None]:
        """Return DBRX's experts, which lie so; those that lead out lie turned."""
        experts = self.config.ffn_config.moe_num_experts
        each = (shape[0] // experts, shape[1])
        if kind != "w2":
            stack = self._stack(f"blk.{block}.ffn_{'gate' if kind == 'w1' else 'up'}_exps.weight", (experts, *each))
            return (Part(stack, 0, shape[0]),), None
        stack = self._stack(f"blk.{block}.ffn_down_exps.weight", (experts, *each[::-1]))
        change: Change = lambda weight: weight.reshape(experts, *each[::-1]).swapaxes(1, 2).reshape(shape)  # noqa: E731
        return (Part(stack, 0, experts * each[1]),), change

    def _parts(self, wanted: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        stored = self._stored(wanted)
        grouped = wanted.endswith("ssm_norm.weight") and numbers_in(stored) == shape[0]  # a row a group
        if _squeezed(stored.shape) != _squeezed(shape) and not grouped:
            raise self._other(wanted, stored.shape, shape)
        return (Part(stored, 0, numbers_in(stored) // stored.shape[-1]),)

    def _stored(self, wanted: str) -> Stored:
        stored = self.header.tensors.get(wanted)
        if stored is None:
            raise refused(self.header.place, f"it misses the weight {wanted}")
        self.used.add(wanted)
        return stored

    def _other(self, name: str, has: tuple[int, ...], wants: tuple[int, ...]) -> Exception:
        return refused(
            self.header.place, f"the weight {name} has the shape {list(has)}, where its keys tell of {list(wants)}"
        )

    def _change(self, wanted: str, shape: tuple[int, ...]) -> Change | None:
        config, architecture = self.config, self.architecture
        if architecture.permute and (".attn_q." in wanted or ".attn_k." in wanted):
            heads = config.num_attention_heads if ".attn_q." in wanted else config.num_key_value_heads
            turned = self.header.whole(f"{self.header.arch}.rope.dimension_count", 0)
            return neighbours_apart(heads, turned or shape[0] // heads, shape)
        if architecture.norm_plus_one and wanted.endswith("norm.weight") and "ssm_norm" not in wanted:
            return lambda weight: (weight - 1).reshape(shape)
        if wanted.endswith(".ssm_a") and self.kind not in VALUES_IN_TURN:
            return lambda weight: np.log(-weight).reshape(shape)
        if "attn_qkv" in wanted and self.kind in ("gpt_neox", "bloom", "gpt_bigcode"):
            each = self.kind != "gpt_bigcode" or not config.multi_query
            return by_head(config.num_attention_heads, shape) if each else None
        if self.kind == "falcon" and "attn_qkv" in wanted and config.num_kv_heads > 1:
            return grouped(config.num_kv_heads, config.num_attention_heads, shape)
        if self.kind in VALUES_IN_TURN:
            return values_apart(config, wanted, shape)
        return None

    def _experts(self, start: str, kind: str, shape: tuple[int, ...]) -> list[Weight]:
        """Return a stack as the files have it: single experts', or of Granite a stack with gates before ups."""
        count = shape[0]
        block = re.search(r"\.(\d+)\.", start)
        assert block is not None
        halves = 2 if kind == "gate_up_proj" else 1
        each = (shape[1] // halves, shape[2])
        kinds = ("gate", "up") if halves == 2 else (kind.removesuffix("_proj"),)
        stacks = [self._stack(f"blk.{block[1]}.ffn_{one}_exps.weight", (count, *each)) for one in kinds]
        if self.kind in (*_GRANITE, *_STACKED):
            parts = tuple(Part(stack, e * each[0], each[0]) for e in range(count) for stack in stacks)
            linear = "input_linear.weight" if halves == 2 else "output_linear.weight"
            own = f"experts.{kind}" if self.kind in _STACKED else linear
            return [Weight(f"{start}{own}", shape, self.dtype, parts)]
        called = dict(zip(("gate", "up", "down"), _SINGLE.get(self.kind, _SINGLE[""]), strict=True))
        return [
            Weight(f"{start}experts.{e}.{called[one]}.weight", each, self.dtype, (Part(stack, e * each[0], each[0]),))
            for one, stack in zip(kinds, stacks, strict=True)
            for e in range(count)
        ]

    def _turned(self, name: str, found: re.Match[str], shape: tuple[int, ...]) -> Weight:
        """Return stacks whose matrices lie turned; gpt-oss's gates and ups lie in turn."""
        kinds = ("gate", "up") if found["kind"] == "gate_up" else ("down",)
        last = "bias" if found["bias"] else "weight"
        out = shape[-1] // len(kinds)
        each = (shape[0], out) if found["bias"] else (shape[0], out, shape[1])
        stacks = [self._stack(f"blk.{found['block']}.ffn_{kind}_exps.{last}", each) for kind in kinds]
        rows = 1 if found["bias"] else out
        parts = tuple(Part(stack, e * rows, rows) for e in range(shape[0]) for stack in stacks)

        def change(weight: Any) -> Any:
            both = weight.reshape(len(kinds), *each[1:])
            turned = both if found["bias"] else both.transpose(0, 2, 1)
            both = np.stack(list(turned), axis=-1) if self.kind == "gpt_oss" else np.concatenate(list(turned), axis=-1)
            return both.reshape(shape[1:])

        return Weight(name, shape, self.dtype, parts, change, together=len(stacks))

    def _stack(self, wanted: str, shape: tuple[int, ...]) -> Stored:
        stored = self._stored(wanted)
        if stored.shape != shape:
            raise self._other(wanted, stored.shape, shape)
        return stored


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
