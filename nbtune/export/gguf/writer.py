"""Base + adapter → GGUF files, streamed: a few rows in memory at a time, several types in one pass.

The container is written with the ``gguf`` package (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); what
goes into it, and how it is encoded, is decided here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from nbtune.atomic_io import replace_file
from nbtune.disk import check_space
from nbtune.errors import ExportError
from nbtune.export.gguf.families import family_of
from nbtune.export.gguf.family import Family
from nbtune.export.gguf.general import Size, write_general
from nbtune.export.gguf.hf_config import Config, Unwritten
from nbtune.export.gguf.kquants import encode, encoded_bytes, fitting
from nbtune.export.gguf.tensors import GgufTensor
from nbtune.export.gguf.vocabulary import Vocabulary, read_vocabulary
from nbtune.export.imatrix_file import fitted
from nbtune.export.merge import MergedModel
from nbtune.export.source import ExportedFile, ExportSource, Progress, must_write_text, safe_name
from nbtune.export.whole_base import by_its_config, left_to_its_class, must_be_whole
from nbtune.models.config_numbers import EXPERTS
from nbtune.spec.gguf_types import FileType, Shape, type_named

T = TypeVar("T")

PART_BYTES = 48 << 30  # of a file, as hubs take them
_ALIGN = 32
_LIGHT = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # encoded by gguf, on the CPU
_ROOM = 4 << 30  # bytes of a GPU's memory that merging and encoding may take, with much to spare


def write_gguf(
    source: ExportSource,
    types: Sequence[str],
    out: Path,
    name: str | None = None,
    *,
    device: torch.device | str | None = None,
    importance: Mapping[str, torch.Tensor] | None = None,
    progress: Progress | None = None,
    part_bytes: int | None = PART_BYTES,
) -> list[ExportedFile]:
    """Write ``<out>/<name>-<type>.gguf`` for each type; each appears when it is whole.

    What is larger than a part becomes ``…-00001-of-00003.gguf`` and so on: llama.cpp opens the first, which finds the
    others.

    >>> [file] = nbtune.export.export_gguf(nbtune.attach("demo").export.source(), ["q8_0"], Path("exports"))
    >>> file.path.name
    'demo-q8_0.gguf'

    Args:
        source: base, and perhaps an adapter on it.
        types: such as ``["f16", "q8_0"]``; each weight is merged once for all of them.
        out: the folder for the files.
        name: by default the source's.
        device: where weights are merged and encoded; by default a GPU that has room, where a type is worth it.
        importance: weight's name, here or in GGUF, → (columns,): how much each column is felt (see
            `nbtune.export.importance_matrix.importance`, and `nbtune.export.imatrix_file.read_importance` for
            llama.cpp's files); K-quants and iq4 then spend their bits by it.
        progress: called with (bytes done, bytes in all, the tensor's name).
        part_bytes: the largest file (a single tensor may be larger); None: one file, however large.

    Raises:
        ExportError: a family, tokenizer or type that is not known (before any work), or no space on the disk.
    """
    began = time.monotonic()
    must_write_text(source)
    kinds = list({kind.name: kind for kind in map(type_named, types)}.values())
    if not kinds:
        raise ExportError("no GGUF type was asked for", fix="name at least one, such as q8_0.")
    config_file = source.base / "config.json"
    model = MergedModel(source, device or _device(kinds))
    with by_its_config(str(config_file)):
        config = Config(model.config, str(config_file), left_to_its_class(source.base))
        family = family_of(config)
    if model.head is None:
        must_be_whole(source.base)
    if model.embedding is None:
        raise ExportError(
            "the model has no token embedding", place=str(source.base), fix="see that the folder is whole."
        )
    with by_its_config(str(config_file)):
        tensors = family.tensors(config, model)
        family.metadata(config, model, Unwritten())
        shape = _shape(config, family, tensors)
    vocabulary = read_vocabulary(source.tokenizer_folder, model.shape(model.embedding)[0])
    felt = fitted(importance or {}, tensors)
    plans = [_Plan(kind, tensors, shape, part_bytes) for kind in kinds]
    check_space(out, sum(plan.bytes for plan in plans), ExportError)
    stem = safe_name(name or source.name)
    with contextlib.ExitStack() as stack:
        for plan in plans:
            plan.paths = _paths(out, f"{stem}-{plan.kind.name}", len(plan.parts))
            for number, path in enumerate(plan.paths):  # the first appears last: it is the one that is opened
                part = stack.enter_context(replace_file(path, shared=True, raises=ExportError))
                writer = _open(part, plan, number, family, config, model, vocabulary, name or source.name)
                stack.callback(writer.close)
                plan.files.append(writer.fout[0])
        _stream(tensors, plans, felt, progress)
    seconds, notes = time.monotonic() - began, (*family.notes(config), *vocabulary.notes)
    return [
        ExportedFile(plan.paths[0], plan.kind.name, plan.written(), seconds, (*notes, *plan.notes)) for plan in plans
    ]


class _Plan:
    """One file to write, perhaps in parts: the encoding of each tensor, and its size."""

    paths: list[Path]

    def __init__(self, kind: FileType, tensors: list[GgufTensor], shape: Shape, part_bytes: int | None) -> None:
        self.kind, self.tensors = kind, tensors
        self.files: list[Any] = []
        self.encodings = [fitting(kind.wanted(tensor, shape), tensor.shape[-1]) for tensor in tensors]
        self.sizes = [encoded_bytes(e, t.shape) for e, t in zip(self.encodings, tensors, strict=True)]
        self.bytes = sum(size + -size % _ALIGN for size in self.sizes)
        self.parts = list(_parts(self.sizes, part_bytes))
        self.part_of = [number for number, part in enumerate(self.parts) for _ in part]
        several = (f"it is {len(self.parts)} files: open the first, which finds the others beside it",)
        self.notes = (*self._notes(shape), *(several if len(self.parts) > 1 else ()))

    def file(self, tensor: int) -> Any:
        """Return the open file that a tensor goes into."""
        return self.files[self.part_of[tensor]]

    def written(self) -> int:
        """Return the bytes of all parts, once they are there."""
        return sum(path.stat().st_size for path in self.paths)

    def _notes(self, shape: Shape) -> tuple[str, ...]:
        """Return what rows of an odd length made of the type."""
        odd = [
            (tensor.shape[-1], encoding, got)
            for tensor, got in zip(self.tensors, self.encodings, strict=True)
            if (encoding := self.kind.wanted(tensor, shape)) != got
        ]
        if not odd:
            return ()
        lengths = ", ".join(sorted({str(length) for length, _, _ in odd}))
        became = ", ".join(sorted({f"{encoding} became {got}" for _, encoding, got in odd}))
        return (f"{len(odd)} tensors have rows of {lengths} values, which blocks of 256 do not divide: {became}",)


def _parts(sizes: Sequence[int], most: int | None) -> Iterator[range]:
    """Yield ranges of tensors that have at most so many bytes together; a larger one is alone."""
    first, held = 0, 0
    for index, size in enumerate(sizes):
        if most is not None and index > first and held + size > most:
            yield range(first, index)
            first, held = index, 0
        held += size
    yield range(first, len(sizes))


def _paths(out: Path, stem: str, count: int) -> list[Path]:
    if count == 1:
        return [out / f"{stem}.gguf"]
    return [out / f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _device(kinds: list[FileType]) -> torch.device:
    """Return a GPU for types that take arithmetic, if it has room beside what else may run there; else the CPU."""
    from nbtune.device import describe, pick

    if all(kind.main in _LIGHT for kind in kinds):
        return torch.device("cpu")
    device = pick("auto")
    return device if device.type == "cuda" and describe(device).free > _ROOM else torch.device("cpu")


def _shape(config: Config, family: Family, tensors: list[GgufTensor]) -> Shape:
    experts = config.same(*EXPERTS) if family.moe else 0
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    return Shape(config.layers, 1 if family.states else config.heads // config.kv_heads, experts, tied)


def _size(config: Config, family: Family, tensors: list[GgufTensor]) -> Size:
    experts = sum(tensor.numel for tensor in tensors if "_exps." in tensor.name)
    total = sum(tensor.numel for tensor in tensors)
    return Size(total, experts, config.same(*EXPERTS) if family.moe else 0)


def _open(
    path: Path,
    plan: _Plan,
    number: int,
    family: Family,
    config: Config,
    model: MergedModel,
    vocabulary: Vocabulary,
    name: str,
) -> Any:
    """Return a writer of a part whose header is written, standing where its tensors begin; the first tells all."""
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, Keys

    writer = GGUFWriter(None, family.arch)
    if number == 0:
        write_general(writer, "model", model.source, name, _size(config, family, plan.tensors))
        writer.add_file_type(plan.kind.number)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        family.metadata(config, model, writer)
        vocabulary.write(writer)
    if len(plan.parts) > 1:
        writer.add_uint16(Keys.Split.LLM_KV_SPLIT_NO, number)
        writer.add_uint16(Keys.Split.LLM_KV_SPLIT_COUNT, len(plan.parts))
        writer.add_int32(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, len(plan.tensors))
    for index in plan.parts[number]:
        tensor, kind = plan.tensors[index], GGMLQuantizationType[plan.encodings[index]]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), plan.sizes[index], raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _stream(
    tensors: list[GgufTensor], plans: list[_Plan], felt: Mapping[str, torch.Tensor], progress: Progress | None
) -> None:
    """Make each tensor once, some rows at a time, and write it into every file in that file's encoding."""
    total, done = sum(plan.bytes for plan in plans), 0
    for file in (file for plan in plans for file in plan.files):
        file.write(bytes(-file.tell() % _ALIGN))
    written = [0] * len(plans)
    with _one_thread_each() as pool, ThreadPoolExecutor(1, thread_name_prefix="nbtune-merge") as ahead:
        for index, rows, last in _one_ahead(_pieces(tensors), ahead):
            encoded: dict[str, Any] = {}
            for i, plan in enumerate(plans):
                encoding = plan.encodings[index]
                if encoding not in encoded:
                    encoded[encoding] = encode(rows, encoding, felt.get(tensors[index].name), pool)
                plan.file(index).write(encoded[encoding].data)
                written[i] += encoded[encoding].nbytes
            if not last:
                continue
            for i, plan in enumerate(plans):
                if written[i] != plan.sizes[index]:
                    raise AssertionError(f"{tensors[index].name}: wrote {written[i]} bytes of {plan.sizes[index]}")
                plan.file(index).write(bytes(-written[i] % _ALIGN))
                done += written[i] + -written[i] % _ALIGN
                written[i] = 0
            if progress:
                progress(done, total, tensors[index].name)


def _pieces(tensors: list[GgufTensor]) -> Iterator[tuple[int, torch.Tensor, bool]]:
    """Yield the number of the tensor, some of its rows, whether they are its last."""
    for index, tensor in enumerate(tensors):
        left = tensor.numel
        for rows in tensor.chunks():
            left -= rows.numel()
            yield index, rows, left == 0


def _one_ahead(items: Iterator[T], thread: ThreadPoolExecutor) -> Iterator[T]:
    """Yield the same items, the next one being made (read and merged) while this one is used (encoded and written)."""
    coming = thread.submit(next, items, None)
    while (item := coming.result()) is not None:
        coming = thread.submit(next, items, None)
        yield item


@contextlib.contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Lend as many workers as torch has threads; each uses one (torch's own threads do not pay on small pieces)."""
    threads = torch.get_num_threads()

    def single() -> None:
        torch.set_num_threads(1)  # of this worker only

    with ThreadPoolExecutor(threads, thread_name_prefix="nbtune-encode", initializer=single) as pool:
        yield pool
