"""A model without a run, exported through the same functions as a run's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbtune.errors import ExportError, NbtuneError, TrainError


def exporter_of(which: str, find_run: Callable[[str], Any]) -> Any:
    """Return what exports a run, or else a model's folder, GGUF file or Hub id.

    Args:
        which: name of one or the other.
        find_run: returns the run of a name, or raises TrainError.

    Raises:
        TrainError: there is no such run, and it is no model either.
    """
    try:
        return find_run(which).export
    except TrainError as no_run:
        is_model = (Path(which) / "config.json").is_file() or which.lower().endswith(".gguf")
        if "/" not in which and not is_model:
            raise
        try:
            return BaseModelExporter(which)
        except NbtuneError as no_model:
            raise no_model from no_run


class BaseModelExporter:
    """The same names as a run's `export`; files go to ./exports by default."""

    def __init__(self, model: str) -> None:
        from nbtune import models
        from nbtune.export import ExportSource

        self._source = ExportSource(
            base=models.resolve(model),
            name=re.sub(r"\.gguf$", "", model.rstrip("/").split("/")[-1], flags=re.IGNORECASE),
            base_id="" if Path(model).is_dir() else model,
        )

    def adapter(self, out: Path | None = None) -> Any:
        """Refuse: a base model has none."""
        from nbtune import export

        return export.export_adapter(self._source, out or Path("exports/adapter"))

    def html(self, out: Path | None = None, *, rows: int = 3) -> Any:
        """Refuse, too.

        Raises:
            ExportError: always.
        """
        raise ExportError("a page shows how a run went, and this is a model without a run", fix="export a run.")

    def adapter_gguf(self, out: Path | None = None) -> Any:
        """Refuse, too."""
        from nbtune import export

        return export.export_adapter_gguf(self._source, out or Path("exports"))

    def merged(self, out: Path | None = None, *, dtype: str = "auto") -> Any:
        """Return the model as safetensors."""
        from nbtune import export

        return export.export_merged(self._source, out or Path("exports/merged"), dtype)

    def gguf(
        self, *types: str, out: Path | None = None, importance: bool | str | Path = False, verify: bool | None = None
    ) -> list[Any]:
        """Write GGUF files, or what llama.cpp makes them of, as a run's `Exporter` does.

        Raises:
            ExportError: with `importance=True` or `verify`: both want rows, which a run has. (A file of llama.cpp's
                `llama-imatrix` is taken.)
        """
        from nbtune import export
        from nbtune.export.gguf.unknown_family import is_unknown, write_for_llama_cpp
        from nbtune.export.imatrix_file import read_importance

        if importance is True or verify:
            wanted = "--verify" if verify else "--importance"
            raise ExportError(f"{wanted} needs rows to measure on, and a model alone has none", fix="export a run.")
        where = out or Path("exports")
        if is_unknown(self._source):
            return [write_for_llama_cpp(self._source, list(types), where)]
        felt = read_importance(importance) if importance else None
        return list(export.export_gguf(self._source, list(types), where, importance=felt))

    def ollama(self, type: str = "q8_0", out: Path | None = None) -> Any:
        """Return a folder that `ollama create` takes."""
        from nbtune import export

        return export.export_ollama(self._source, out or Path("exports/ollama"), type)
