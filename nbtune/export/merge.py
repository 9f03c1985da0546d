"""Base + adapter → the merged model's tensors in fp32, one by one.

The sum is made in fp32, whatever the base is stored in: merging in bf16 loses small updates. For LoRA
(https://arxiv.org/abs/2106.09685) a weight becomes ``W + s·B·A``, with ``s = alpha/r``, or ``alpha/√r`` for rsLoRA
(https://arxiv.org/abs/2312.03732); DoRA (https://arxiv.org/abs/2402.09353) then scales each row to its learned norm.
A tensor is made some rows at a time, so that memory stays small however big the model is.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nbtune.atomic_io import replace_folder
from nbtune.data.tokenize.terminators import with_ends
from nbtune.disk import check_space, folder_bytes
from nbtune.errors import ExportError
from nbtune.export.config_file import with_older_names
from nbtune.export.gguf.vocabulary import load_tokenizer
from nbtune.export.missing_weights import fix_of_missing, not_in_base
from nbtune.export.peft_adapter import AdapterFile
from nbtune.export.safetensors_reader import Weights, finite, rows_per_chunk
from nbtune.export.source import ExportedFile, ExportSource, Progress, read_json, refuse_quantised, scores_of
from nbtune.models.adapter_targets import rounded_linears, turned_linears
from nbtune.models.experts.stacks import rounded_pieces
from nbtune.models.heads import Head
from nbtune.models.outline_facts import outlined
from nbtune.models.stored_names import pieces_of
from nbtune.models.tokenizer_files import copy_tokenizer, make_portable

HEAD = "lm_head.weight"
_EMBEDDINGS = (
    "embed_tokens.weight",
    "word_embeddings.weight",
    "wte.weight",
    "backbone.embeddings.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
)
GENERATION = "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16", "fp16": "float16", "f16": "float16"}
_STORED = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class MergedModel:
    """The tensors of base + adapter by name, each made in fp32 when it is asked for.

    Args:
        source: base, and perhaps an adapter on it.
        device: where the sums are made.

    Raises:
        ExportError: a folder is not whole, the adapter is of a kind that cannot be merged exactly, or a part of it
            finds no weight in the base. Nothing is read but headers until then.
    """

    def __init__(self, source: ExportSource, device: torch.device | str = "cpu") -> None:
        self.source, self.device = source, torch.device(device)
        self.config: dict[str, Any] = read_json(source.base / "config.json")
        refuse_quantised(self.config, str(source.base))
        self.base = Weights(source.base)
        self._rounded: tuple[str, torch.Tensor] = ("", torch.empty(0))
        self.adapter = AdapterFile(source.adapter) if source.adapter else None
        self.embedding = embedding_name(self.base)
        says = self.config.get("tie_word_embeddings")  # where it unties them, what they hold is of no matter
        if says is not False and HEAD in self.base and self.embedding and not self.base.equal(HEAD, self.embedding):
            self.config["tie_word_embeddings"] = False  # whatever it says: so transformers 5 loads them
        self.head = scores_of(source, self.config)
        self.names = [name for name in self.base if self.base.dtype(name) in ("F64", "F32", "F16", "BF16")]
        if self.head is not None:
            self._take_head(self.head)
        if self.adapter:
            self._attach(self.adapter)

    def _take_head(self, head: Head) -> None:
        """Put the scores in place of the base's own head, and say so in the config."""
        self.names = [name for name in self.names if name != HEAD]
        trained = self.adapter.targets if self.adapter else {}
        self.names += [name for name in trained if name.startswith(f"{head.layer}.") and name not in self.names]
        with contextlib.suppress(ExportError):
            pad = load_tokenizer(self.source.tokenizer_folder).pad_token_id
            self.config = head.config(self.config, pad)

    def _attach(self, adapter: AdapterFile) -> None:
        there = {*self.base, *self.names}
        other = adapter.config.get("target_parameters") or any(name not in there for name in adapter.targets)
        base = outline_of(self.source.base) if other else None
        if base is not None:
            adapter.settle(base, self.base)
        if self._tied():
            self._keep_or_cut_tie(adapter)
        there = {*self.base, *self.names}
        adapter.scale_biases(there)
        if missing := [name for name in adapter.targets if name not in there]:
            raise ExportError(
                not_in_base(missing, base),
                place=str(adapter.folder),
                fix=fix_of_missing(missing, base),
            )
        for name in adapter.targets:
            adapter.check_shape(name, self.shape(name) if self.head else self._base_shape(name))
        if self.embedding:
            text = self.config.get("text_config", self.config)
            text["vocab_size"] = self.shape(self.embedding)[0]

    def _tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings")) and HEAD not in self.base and self.embedding is not None

    def _keep_or_cut_tie(self, adapter: AdapterFile) -> None:
        """Let the head follow a tied embedding unless the adapter changed one of the two and not the other."""
        embedding = self.embedding or ""
        head, embedded = adapter.targets.get(HEAD), adapter.targets.get(embedding)
        if embedded is not None and embedded.tokens is not None and head is None:
            return  # new vectors for some tokens: peft gives them to the head as well
        if head is None and embedded is None:
            return
        self.config["tie_word_embeddings"] = False
        self.names.append(HEAD)

    def _stored(self, name: str) -> str:
        return self.embedding if name == HEAD and HEAD not in self.base and self.embedding else name

    def _base_shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(self._stored(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape after merging (an embedding with extra tokens has grown)."""
        target = self.adapter.targets.get(name) if self.adapter else None
        if target is not None and target.full:
            return self.adapter.weights.shape(target.full)  # type: ignore[union-attr]
        return self._base_shape(name)

    @property
    def dtype(self) -> str:
        """The base's own: of most of its numbers, in torch's spelling."""
        counts = dict.fromkeys(DTYPES, 0)
        for name in self.base:
            counts[_STORED.get(self.base.dtype(name), "bfloat16")] += math.prod(self.base.shape(name))
        return max(counts, key=lambda each: counts[each])

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return rows ``[start:stop]`` of a merged tensor, fp32 (all of a vector: ``start=0``).

        Raises:
            ExportError: one of them is no number.
        """
        return finite(name, self._rows(name, start, stop), self.source.name)

    def _rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        if self.adapter and name in self.adapter.targets:
            if self.adapter.targets[name].full:
                full = self._fp32(self.adapter.weights.rows(self.adapter.targets[name].full, start, stop))
                return self.adapter.add(name, full, start, stop)
            return self.adapter.add(name, self._base_rows(name, start, stop), start, stop)
        return self._base_rows(name, start, stop)

    def _base_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        weights = self.source.weights
        if weights.quantised and weights.experts and name in self._of_experts:
            from nbtune.models.experts.rounded import rounded_rows

            rows = self._fp32(self.base.rows(name, start, stop))  # of an expert, or of a stack: each by itself
            return rounded_rows(rows.view(-1, rows.shape[-1]), weights.format).view(rows.shape)
        if weights.quantised and self._is_linear(name):
            if self._rounded[0] != name:  # as a whole: the scales' own scales are of the whole tensor
                from nbtune.models.accelerate.linear_kinds import rounded

                whole = self.base.get(name).to(self.device)
                turned = weights.four_bit and name in self._turned  # as it is rounded
                self._rounded = (name, rounded(whole.T.contiguous(), weights).T if turned else rounded(whole, weights))
            return self._rounded[1][start:stop]
        return self._fp32(self.base.rows(self._stored(name), start, stop))

    @cached_property
    def _of_experts(self) -> frozenset[str]:
        """What in the files is a piece of a stack that training had rounded."""
        model = outline_of(self.source.base)
        found = {} if model is None else rounded_pieces(model, self.base)
        return frozenset(piece.name for held in found.values() for piece in held)

    def _is_linear(self, name: str) -> bool:
        """Return whether training had this weight quantised: those of linear layers but the head, and not experts,
        which are stacked as they are loaded, nor what chooses among them."""
        return name in self._linear if self._linear is not None else self._is_matrix(name)

    def _is_matrix(self, name: str) -> bool:
        return name != self.embedding and name != HEAD and len(self.base.shape(self._stored(name))) == 2

    @cached_property
    def _linear(self) -> frozenset[str] | None:
        if (model := outline_of(self.source.base)) is None:
            return None
        layers, stored = rounded_linears(model, self.source.weights), pieces_of(model, self.base)
        return frozenset(piece.name for name in layers for piece in stored.get(f"{name}.weight", ()))

    @cached_property
    def _turned(self) -> frozenset[str]:
        """What in the files lies as (in, out)."""
        if (model := outline_of(self.source.base)) is None:
            return frozenset()
        stored = pieces_of(model, self.base)
        return frozenset(piece.name for name in turned_linears(model) for piece in stored.get(f"{name}.weight", ()))

    def _fp32(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.to(self.device).float()

    def get(self, name: str) -> torch.Tensor:
        """Return a whole merged tensor, fp32, of the shape that it has in the checkpoint."""
        shape = self.shape(name)
        return self.rows(name, 0, shape[0] if shape else 1)

    def number(self, name: str) -> float:
        """Return the one number that a merged tensor holds."""
        return float(next(self.chunks(name)).reshape(-1)[0])

    def chunks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield a merged tensor, fp32, some rows at a time."""
        shape = self.shape(name)
        if not shape:
            yield finite(name, self._fp32(self.base.get(self._stored(name))), self.source.name)
            return
        step = rows_per_chunk(shape)
        for start in range(0, shape[0], step):
            yield self.rows(name, start, min(start + step, shape[0]))


def outline_of(base: Path) -> Any:
    """Return the base without its numbers, or None: its weights are what they are called."""
    try:
        return outlined(str(base))
    except Exception:  # noqa: BLE001 — a model's own code may want numbers, a folder may be anybody's
        return None


def embedding_name(base: Iterable[str]) -> str | None:
    """Return which of a model's weights is the embedding of its tokens."""
    for name in base:
        if name.endswith(_EMBEDDINGS):
            return name
    return None


@dataclass(frozen=True)
class _Entry:
    name: str
    shape: tuple[int, ...]
    bytes: int


def write_merged(
    source: ExportSource,
    out: Path,
    dtype: str = "auto",
    *,
    shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> ExportedFile:
    """Write the merged model as a transformers folder: safetensors (sharded), config, tokenizer, chat template.

    >>> nbtune.export.export_merged(nbtune.attach("demo").export.source(), Path("merged")).path.name
    'merged'

    Args:
        source: base, and perhaps an adapter on it.
        out: the folder to make; it appears when it is whole.
        dtype: ``"bfloat16"``, ``"float16"``, ``"float32"`` (or bf16, fp16, fp32); ``"auto"``: that of most
            of the base's weights.
        shard_bytes: the largest file, in bytes (a single tensor may be larger).
        progress: called with (bytes done, bytes in all, the tensor's name).

    Raises:
        ExportError: see `MergedModel`; the disk is too small; `out` holds other things.
    """
    began = time.monotonic()
    dtype = _SHORT.get(dtype, dtype)
    if dtype not in (*DTYPES, "auto"):
        raise ExportError(f"dtype {dtype!r} is not known", fix=f"use one of auto, {', '.join(DTYPES)}.")
    model = MergedModel(source)
    dtype = model.dtype if dtype == "auto" else dtype
    target = DTYPES[dtype]
    entries = [_entry(name, model.shape(name), target.itemsize) for name in model.names]
    total = sum(entry.bytes for entry in entries)
    check_space(out, total, ExportError)
    with replace_folder(out, shared=True, marker="config.json", raises=ExportError) as part:
        notes = _write_shards(model, entries, part, target, shard_bytes, total, progress)
        config = {**with_older_names(model.config), "dtype": dtype, "torch_dtype": dtype}
        config.pop("_name_or_path", None)
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_tokenizer(source.tokenizer_folder, part)
        make_portable(part)
        generation = source.base / GENERATION
        if not write_generation(source, part) and generation.is_file():
            (part / GENERATION).write_bytes(generation.read_bytes())
    return ExportedFile(out, f"merged-{dtype}", folder_bytes(out), time.monotonic() - began, notes)


def generation_of(source: ExportSource) -> dict[str, Any] | None:
    """Return a generation_config.json that also stops where trained answers end; None: the base's own does.

    A base that stops at `<|endoftext|>` and was trained by a template that ends turns with `<|im_end|>` would go on and
    on in every tool that does not ask the chat template.
    """
    own = source.base / GENERATION
    try:
        config = read_json(own) if own.is_file() else None
        return with_ends(config, read_json(source.base / "config.json"), load_tokenizer(source.tokenizer_folder))
    except ExportError:
        return None  # no tokenizer, or one that only its own code knows: nbtune has trained nothing with that


def write_generation(source: ExportSource, out: Path) -> bool:
    """Write it into `out`, where there is something to say; False: there is not."""
    body = generation_of(source)
    if body is not None:
        (out / GENERATION).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return body is not None


def _entry(name: str, shape: tuple[int, ...], itemsize: int) -> _Entry:
    count = itemsize
    for size in shape:
        count *= size
    return _Entry(name, shape, count)


def _write_shards(
    model: MergedModel,
    entries: list[_Entry],
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int,
    total: int,
    progress: Progress | None,
) -> tuple[str, ...]:
    shards = _split(entries, shard_bytes)
    many = len(shards) > 1
    where: dict[str, str] = {}
    done, clipped = 0, 0
    for index, shard in enumerate(shards, 1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors" if many else "model.safetensors"
        with open(folder / file, "wb") as stream:
            stream.write(_header(shard, dtype))
            for entry in shard:
                for chunk in model.chunks(entry.name):
                    stored = chunk.to(dtype)
                    clipped += int(torch.isinf(stored).sum()) if dtype is torch.float16 else 0
                    stream.write(stored.contiguous().flatten().view(torch.uint8).numpy().data)
                    done += chunk.numel() * dtype.itemsize
                    if progress:
                        progress(done, total, entry.name)
                where[entry.name] = file
    if many:
        body = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    if clipped:
        return (f"{clipped} weights are beyond float16's range and became infinite: use bfloat16",)
    return ()


def _split(entries: list[_Entry], shard_bytes: int) -> list[list[_Entry]]:
    shards: list[list[_Entry]] = [[]]
    used = 0
    for entry in entries:
        if shards[-1] and used + entry.bytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += entry.bytes
    return shards


def _header(entries: list[_Entry], dtype: torch.dtype) -> bytes:
    """Return safetensors' header: its length, then JSON, padded to 8
    (https://github.com/huggingface/safetensors#format)."""
    body: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        body[entry.name] = {
            "dtype": _SAFETENSORS[dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.bytes],
        }
        at += entry.bytes
    text = json.dumps(body, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
