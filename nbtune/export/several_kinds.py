"""Several kinds of export at once, for the doors that take them as flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbtune.export.source import ExportedFile


def take_home(
    exporter: Any,
    *,
    gguf: Sequence[str] = (),
    adapter: bool = False,
    adapter_gguf: bool = False,
    merged: str = "",
    ollama: str = "",
    html: bool = False,
    rows: int = 3,
    out: str | Path | None = None,
    importance: bool | str | Path = False,
    verify: bool | None = None,
) -> list[ExportedFile]:
    """Make several kinds at once, for the doors that take them as flags.

    >>> [made.path.name for made in nbtune.export.take_home(nbtune.attach("demo").export, gguf=["q8_0"], verify=False)]
    ['demo-q8_0.gguf']

    Args:
        exporter: a run's `Exporter`, or what has the same names.
        gguf: types of file.
        adapter, adapter_gguf: whether to make these.
        merged: the dtype of a merged model; none is made without it.
        ollama: the type of Ollama's file, alike.
        html: whether a page is made that shows the run, with so many `rows` of its data.
        out: where it goes: as it is for one kind, with a folder for each that is a folder for several.
        importance, verify: of the GGUF files, see `Exporter.gguf`.
    """
    from nbtune.spec.gguf_types import type_named

    for kind in (*gguf, *([ollama] if ollama else [])):
        type_named(kind)  # refused before any work
    several = sum((html, adapter, bool(merged), bool(ollama), bool(gguf) or adapter_gguf)) > 1

    def place(name: str) -> Path | None:
        return None if out is None else Path(out).expanduser() / (name if several else "")

    files: list[ExportedFile] = []
    if html:
        files.append(exporter.html(out=place(""), rows=rows))
    if adapter:
        files.append(exporter.adapter(out=place("adapter")))
    if adapter_gguf:
        files.append(exporter.adapter_gguf(out=place("")))
    if merged:
        files.append(exporter.merged(out=place("merged"), dtype=merged))
    if ollama:
        files.append(exporter.ollama(ollama, out=place("ollama")))
    if gguf:
        files += exporter.gguf(*gguf, out=place(""), importance=importance, verify=verify)
    return files
