"""A family that nbtune does not write: the merged model, and which of llama.cpp's commands make the files of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from nbtune.atomic_io import read_json
from nbtune.errors import ExportError
from nbtune.export.gguf.families import FAMILIES
from nbtune.export.merge import write_merged
from nbtune.export.source import ExportedFile, ExportSource, Progress, must_write_text, safe_name
from nbtune.spec.gguf_types import type_named
from nbtune.untrusted import from_here

# What llama.cpp is known to compute otherwise: of a tiny model, with its norms and routers as it has them.
_OTHERWISE = {
    "phimoe": ". But llama.cpp normalises without a mean and weighs experts otherwise than the model: a tiny one's "
    "logits were a third of their range off"
}
_NO_GRAPH = ("gptj",)  # of which llama.cpp has the name alone
_CONVERTED = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")  # what llama.cpp's converter writes by itself


def _has_architecture(kind: str) -> bool:
    """Return whether llama.cpp has an architecture of a model_type's name, in its own spelling."""
    from gguf import MODEL_ARCH_NAMES

    plain = kind.removesuffix("_text").replace("_", "").replace("-", "")
    return plain in {name.replace("_", "").replace("-", "") for name in MODEL_ARCH_NAMES.values()}


def is_unknown(source: ExportSource) -> bool:
    """Return whether nbtune does not know how to write a model's family."""
    try:
        kind = _kind(source)
    except (OSError, ValueError, ExportError):
        return False  # no model at all: whoever writes it says so
    return bool(kind) and kind not in FAMILIES


def _kind(source: ExportSource) -> str:
    return str((read_json(source.base / "config.json", links=True) or {}).get("model_type") or "")


def write_for_llama_cpp(
    source: ExportSource, types: Sequence[str], out: Path, name: str | None = None, *, progress: Progress | None = None
) -> ExportedFile:
    """Write the merged model into ``<out>/merged``; its notes say what then makes the files that were wanted.

    Args:
        source, types, out, name, progress: as of `nbtune.export.gguf.writer.write_gguf`.

    Raises:
        ExportError: the model cannot be merged.
    """
    must_write_text(source)
    kinds = list({kind.name: kind for kind in map(type_named, types)})
    made = write_merged(source, out / "merged", progress=progress)
    commands = " && ".join(_commands(made.path, out / safe_name(name or source.name), kinds))
    files = "the file" if len(kinds) == 1 else "the files"
    kind = _kind(source)
    known = f", and llama.cpp's own `{commands}` makes {files} of it"
    if kind in _NO_GRAPH:
        known += ", once llama.cpp runs the family: today it has its name, and does not run it"
    elif not _has_architecture(kind):
        known += f", if its converter knows the family: the list of `gguf` {version('gguf')} does not name it"
    note = f"nbtune does not write a {kind!r} model as GGUF: this is the merged model{known}{_OTHERWISE.get(kind, '')}"
    return replace(made, notes=(*made.notes, note))


def _commands(folder: Path, stem: Path, kinds: Sequence[str]) -> list[str]:
    """Return what is typed for files of these types; K-quants are made of one in 16 bits."""

    def file(kind: str) -> str:
        return shlex.quote(from_here(stem.with_name(f"{stem.name}-{kind}.gguf")))

    converted = [kind for kind in kinds if kind in _CONVERTED]
    squeezed = [kind for kind in kinds if kind not in _CONVERTED]
    if squeezed and not {"f16", "bf16", "f32"} & set(converted):
        converted.insert(0, "bf16")
    fine = next((kind for kind in ("f32", "bf16", "f16") if kind in converted), "")
    place = shlex.quote(from_here(folder))
    made = [
        f"python llama.cpp/convert_hf_to_gguf.py {place} --outtype {kind} --outfile {file(kind)}" for kind in converted
    ]
    return [*made, *(f"llama-quantize {file(fine)} {file(kind)} {kind.upper()}" for kind in squeezed)]
