"""A LoRA adapter as GGUF: what llama.cpp's ``--lora`` and Ollama's ``ADAPTER`` load; milliseconds, a few megabytes."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbtune.atomic_io import replace_file
from nbtune.disk import check_space
from nbtune.errors import ExportError
from nbtune.export.gguf.deepseek import WITHOUT_LORA
from nbtune.export.gguf.experts import is_stack, single_factors
from nbtune.export.gguf.families import family_of
from nbtune.export.gguf.family import Family
from nbtune.export.gguf.general import Size, write_general
from nbtune.export.gguf.hf_config import Config
from nbtune.export.gguf.kquants import encode
from nbtune.export.gguf.tensors import GgufTensor, Rows
from nbtune.export.merge import HEAD, MergedModel
from nbtune.export.peft_adapter import AdapterFile
from nbtune.export.peft_export import adapter_folder
from nbtune.export.source import ExportedFile, ExportSource, must_write_text, safe_name
from nbtune.export.whole_base import by_its_config, left_to_its_class

_LATENT = "attention by latent vectors"
# What llama.cpp multiplies without a look at adapters (an adapter's numbers there would be passed over silently).
_WITHOUT = {
    _LATENT: WITHOUT_LORA,
    "what leads to latent experts and back": re.compile(r"\.ffn_latent_(down|up)\."),
    "what makes its layers' own inputs": re.compile(r"^per_layer_model_proj\."),
    "what makes and joins its streams": re.compile(r"^altup_(unembd_)?proj\."),
}


class _Factors:
    """One side (A or B) of every LoRA pair, under the base weights' names: what a family takes for a model."""

    def __init__(
        self, model: MergedModel, adapter: AdapterFile, side: int, scales: dict[str, float], family: Family
    ) -> None:
        self.source = model.source
        self.embedding = None
        self._tensors: dict[str, torch.Tensor] = {}
        for name, scale in scales.items():
            a, b = adapter.factors(name)
            if family.turned and is_stack(name) and not adapter.targets[name].turned:
                a, b = b.transpose(1, 2), a.transpose(1, 2)  # peft took the weight for one that does not lie turned
            if family.scaled and (by := family.scaled(name)):  # llama.cpp adds to what is scaled
                b = b * model.get(by)[:, None, None]
            parts = single_factors(name, a, b, in_turn=family.in_turn) if is_stack(name) else {name: (a, b)}
            self._tensors |= {at: found[side] * (scale if side else 1.0) for at, found in parts.items()}
        self.names = sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def chunks(self, name: str) -> Iterator[torch.Tensor]:
        yield self._tensors[name]


def write_lora_gguf(source: ExportSource, out: Path, name: str | None = None, encoding: str = "F32") -> ExportedFile:
    """Write ``<out>/<name>-lora-f32.gguf``.

    >>> nbtune.export.export_adapter_gguf(nbtune.attach("demo").export.source(), Path("exports")).path.name
    'demo-lora-f32.gguf'

    llama.cpp scales a pair by alpha/r with one alpha for all; rsLoRA and patterns of rank or alpha are folded into B.

    Args:
        source: base and adapter (the base's config decides names and the order of rows).
        out: the folder for the file.
        name: by default the source's.
        encoding: of the factors: ``"F32"`` or ``"F16"``.

    Raises:
        ExportError: the adapter has what a LoRA GGUF cannot hold (DoRA, whole modules, embeddings, a tied head); see
            `write_gguf`.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    began = time.monotonic()
    must_write_text(source)
    adapter_folder(source)
    model = MergedModel(source)  # checks that the adapter fits this base
    adapter = model.adapter
    assert adapter is not None
    _refuse(adapter, {*model.base})
    adapter.weights.must_be_finite()
    config_file = str(source.base / "config.json")
    with by_its_config(config_file):
        config = Config(model.config, config_file, left_to_its_class(source.base))
        family = family_of(config)
    alphas = {name: target.scale * adapter.rank(name) for name, target in adapter.targets.items()}
    alpha = next(iter(alphas.values()))
    scales = {name: value / alpha for name, value in alphas.items()}
    turned = bool(adapter.config.get("fan_in_fan_out"))  # GPT-2's weights are, their factors are as all others'
    outputs = dataclasses.replace(
        family, head=False, lacking=None, columns=None, change=None if turned else family.change
    )
    b = outputs.tensors(config, _Factors(model, adapter, 1, scales, family))  # type: ignore[arg-type]
    plain = dataclasses.replace(family, head=False, lacking=None, permute=False, change=None, parts=_whole(family))
    a = plain.tensors(config, _Factors(model, adapter, 0, scales, family))  # type: ignore[arg-type]
    pairs = _pairs(a, b)
    for words, at in _WITHOUT.items():
        if (words == _LATENT and not family.latent) or not any(at.search(tensor.name) for tensor in pairs):
            continue
        raise ExportError(
            f"llama.cpp applies no adapter to {words}",
            place=str(adapter.folder),
            fix="export the merged model as GGUF.",
        )
    path = out / f"{safe_name(name or source.name)}-lora-{encoding.lower()}.gguf"
    check_space(out, sum(tensor.numel * 4 for tensor in pairs), ExportError)
    writer = GGUFWriter(None, family.arch)
    write_general(writer, "adapter", source, name or source.name, Size(sum(tensor.numel for tensor in pairs)))
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for tensor in pairs:
        data = torch.cat(list(tensor.chunks()))
        raw: Any = encode(data, encoding).view(np.float32 if encoding == "F32" else np.float16)
        writer.add_tensor(tensor.name, raw.reshape(tensor.shape), raw_dtype=GGMLQuantizationType[encoding])
    with replace_file(path, shared=True, raises=ExportError) as part:
        _write(writer, part)
    return ExportedFile(path, f"lora-{encoding.lower()}", path.stat().st_size, time.monotonic() - began)


def _whole(family: Family) -> Callable[[MergedModel, Config, str], dict[str, Rows] | None]:
    """Return a family's parts for the side of inputs: each has all of them."""

    def parts(model: MergedModel, config: Config, source: str) -> dict[str, Rows] | None:
        found = family.parts(model, config, source) if family.parts else None
        return found and dict.fromkeys(found, lambda weight: weight)

    return parts


def _refuse(adapter: AdapterFile, base: set[str]) -> None:
    for name, target in adapter.targets.items():
        what = None
        if target.magnitude:
            what = "DoRA's norms"
        elif target.factor:
            what = "IA3's factors"
        elif target.embedding or target.tokens is not None:
            what = "changed embeddings"
        elif target.full or target.delta:
            what = f"more than LoRA factors ({name})"
        elif name == HEAD and name not in base:
            what = "an adapter of a head that is the embedding too"
        if what:
            raise ExportError(
                f"a LoRA GGUF cannot hold {what}", place=str(adapter.folder), fix="export the merged model as GGUF."
            )


def _pairs(a: list[GgufTensor], b: list[GgufTensor]) -> list[GgufTensor]:
    right = {tensor.name: tensor for tensor in b}
    pairs = []
    for left in a:
        pairs.append(dataclasses.replace(left, name=f"{left.name}.lora_a"))
        pairs.append(dataclasses.replace(right[left.name], name=f"{left.name}.lora_b"))
    return [tensor for tensor in pairs if not tensor.name.startswith("rope_")]


def _write(writer: Any, path: Path) -> None:
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
