"""The weights of a model's folder, made of a GGUF file's tensors: the way back from how llama.cpp keeps them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nbtune.models.gguf_file import rotary
from nbtune.models.gguf_file.architectures import Architecture
from nbtune.models.gguf_file.header import GgufHeader, Stored, refused
from nbtune.models.gguf_file.numbers import ROOM, can_decode, numbers_in, values
from nbtune.untrusted import shortened

Change = Callable[[Any], Any]
_DTYPES = ("F32", "F16")  # what a file of mostly these becomes; a quantised one becomes BF16
_STACK = re.compile(r"^(?P<start>.*\.)experts\.(?P<kind>gate_up_proj|down_proj)$")
_TURNED = re.compile(r"^model\.layers\.(?P<block>\d+)\..*\.experts\.(?P<kind>gate_up|down)_proj(?P<bias>_bias)?$")
# transformers' own names in files: of single experts, or of stacks with gates before ups
_SINGLE = {
    "mixtral": ("block_sparse_moe.experts.{}.w1.weight", "w3", "w2"),
    "": ("mlp.experts.{}.gate_proj.weight", "up_proj", "down_proj"),
}
_OLDER_NAMES = {
    "mixtral": (".mlp.", ".block_sparse_moe."),
    "granitemoe": ("_moe.router.weight", "_moe.router.layer.weight"),
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
        change: done in fp32 with the whole of it, or with every `together` parts; None: it is as it is stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]
    change: Change | None = None
    together: int = 0

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return int(np.prod(self.shape, dtype=np.int64)) * (4 if self.dtype == "F32" else 2)

    def jobs(self) -> Iterator[Callable[[], Any]]:
        """Yield what makes its numbers in fp32, some rows after the other; a changed one's are made as a whole."""
        if self.change is None:
            for part in self.parts:
                yield from part.jobs()
            return
        step = self.together or len(self.parts)
        for at in range(0, len(self.parts), step):
            yield partial(_changed, self.change, self.parts[at : at + step])


def _changed(change: Change, parts: tuple[Part, ...]) -> Any:
    return change(np.concatenate([job() for part in parts for job in part.jobs()]))


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
    weights = [weight for name, tensor in outline.state_dict().items() for weight in made.one(name, tensor)]
    left = sorted(set(header.tensors) - made.used)
    left = [name for name in left if not _WITHOUT_MEANING.search(name) and name not in rotary.TENSORS]
    if left:
        more = f" and {len(left) - 1} others" if len(left) > 1 else ""
        raise refused(
            header.place,
            f"it holds the weight {shortened(left[0])}{more}, for which transformers' "
            f"{outline.config.model_type} has no place",
            "Name the model's Hub id or its folder of safetensors instead.",
        )
    return weights


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
        if self.kind == "gpt_oss" and (found := _TURNED.match(name)):
            return [self._turned(name, found, tuple(tensor.shape))]
        if found := _STACK.match(name):
            return self._experts(name, found["kind"], tuple(tensor.shape))
        wanted = self._named(name)
        shape = tuple(tensor.shape)
        turned = self.kind == "gpt2" and len(shape) == 2 and ".h." in name  # its linear layers are stored (in, out)
        parts = self._parts(wanted, shape[::-1] if turned else shape)
        own = name.replace(*_OLDER_NAMES[self.kind]) if self.kind in _OLDER_NAMES else name
        dtype = "F32" if len(shape) == 1 and parts[0].stored.encoding == "F32" else self.dtype
        return [Weight(own, shape, dtype, parts, _turn if turned else self._change(wanted, shape))]

    def _named(self, name: str) -> str:
        if self.kind == "bloom":  # of whose blocks the table knows only names without this
            name = name.removeprefix("transformer.")
        if name.endswith(".self_attn.sinks"):
            name = name.replace(".self_attn.sinks", ".attn_sinks.weight").replace("model.layers.", "blk.")
            return name
        looked_up = name.replace("_moe.router.weight", "_moe.router.layer.weight")
        found = self.names.get_name(looked_up, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise refused(self.header.place, f"its architecture has no name for {name}", "Name its Hub id instead.")
        return str(found)

    def _parts(self, wanted: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        stored = self._stored(wanted)
        rows = 1 if len(shape) == 1 else shape[0]
        if _squeezed(stored.shape) != _squeezed(shape):
            raise self._other(wanted, stored.shape, shape)
        return (Part(stored, 0, rows),)

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
        if architecture.permute and ".attn_q." in wanted:
            return _back(config.num_attention_heads, shape)
        if architecture.permute and ".attn_k." in wanted:
            return _back(config.num_key_value_heads, shape)
        if architecture.norm_plus_one and wanted.endswith("norm.weight"):
            return lambda weight: (weight - 1).reshape(shape)
        if self.kind in ("gpt_neox", "bloom") and "attn_qkv" in wanted:
            return _by_head(config.num_attention_heads, shape)
        if self.kind == "falcon" and "attn_qkv" in wanted and config.new_decoder_architecture:
            return _grouped(config.num_kv_heads, config.num_attention_heads, shape)
        return None

    def _experts(self, name: str, kind: str, shape: tuple[int, ...]) -> list[Weight]:
        """Return a stack as the files have it: single experts', or of Granite a stack with gates before ups."""
        count = shape[0]
        block = re.search(r"\.(\d+)\.", name)
        assert block is not None
        halves = 2 if kind == "gate_up_proj" else 1
        each = (shape[1] // halves, shape[2])
        kinds = ("gate", "up") if halves == 2 else ("down",)
        stacks = [self._stack(f"blk.{block[1]}.ffn_{one}_exps.weight", (count, *each)) for one in kinds]
        if self.kind == "granitemoe":
            parts = tuple(Part(stack, e * each[0], each[0]) for e in range(count) for stack in stacks)
            linear = "input" if halves == 2 else "output"
            own = re.sub(r"experts\.\w+$", f"{linear}_linear.weight", name)
            return [Weight(own, shape, self.dtype, parts)]
        gate, up, down = _SINGLE.get(self.kind, _SINGLE[""])
        last = (
            [gate, gate.replace(gate.split(".")[-2], up)] if halves == 2 else [gate.replace(gate.split(".")[-2], down)]
        )
        start = name[: name.index("mlp.experts")]
        return [
            Weight(start + called.format(e), each, self.dtype, (Part(stack, e * each[0], each[0]),))
            for called, stack in zip(last, stacks, strict=True)
            for e in range(count)
        ]

    def _turned(self, name: str, found: re.Match[str], shape: tuple[int, ...]) -> Weight:
        """Return gpt-oss's stacks: matrices lie turned, gates and ups in turn."""
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
            return np.stack(list(turned), axis=-1).reshape(shape[1:])

        return Weight(name, shape, self.dtype, parts, change, together=len(stacks))

    def _stack(self, wanted: str, shape: tuple[int, ...]) -> Stored:
        stored = self._stored(wanted)
        if stored.shape != shape:
            raise self._other(wanted, stored.shape, shape)
        return stored


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _turn(weight: Any) -> Any:
    return np.ascontiguousarray(weight.T)


def _by_head(heads: int, shape: tuple[int, ...]) -> Change:
    """Return what makes all q, all k, all v those of each head, one behind the other."""

    def change(weight: Any) -> Any:
        parts = weight.reshape(3, heads, shape[0] // heads // 3, -1)
        return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(shape)

    return change


def _back(heads: int, shape: tuple[int, ...]) -> Change:
    """Return what puts query or key rows back: ``(head, i, half)`` becomes ``(head, half, i)``."""

    def change(weight: Any) -> Any:
        pairs = weight.reshape(heads, shape[0] // heads // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(shape)

    return change


def _grouped(groups: int, heads: int, shape: tuple[int, ...]) -> Change:
    """Return what makes all q, all k, all v Falcon's newer layout again: q…, k, v by key head."""
    per = heads // groups
    width = shape[0] // (heads + 2 * groups)

    def change(weight: Any) -> Any:
        q = weight[: heads * width].reshape(groups, per, width, -1)
        k = weight[heads * width : (heads + groups) * width].reshape(groups, 1, width, -1)
        v = weight[(heads + groups) * width :].reshape(groups, 1, width, -1)
        return np.concatenate([q, k, v], axis=1).reshape(shape)

    return change
