"""What Tab offers where a command takes a run, a model, rows or a type of GGUF file: looked up when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nbtune import hub_cache
from nbtune.commands.command import Argument
from nbtune.models.handed_over import is_model, is_tokenizer
from nbtune.spec.gguf_types import TYPES

_EMBEDDED = ("nbtune/tiny",)
_DATA_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".gz")


def offered(argument: Argument, namespace: Mapping[str, Any], runs_dir: Path | None = None) -> list[str]:
    """Return the words that an argument may be, as far as they are known.

    Args:
        argument: of a command.
        namespace: variables of the notebook.
        runs_dir: where runs are; unset: as for `nbtune.runs`.
    """
    if argument.choices:
        return list(argument.choices)
    match argument.offers:
        case "runs":
            return _runs(runs_dir)
        case "models":
            return models(namespace)
        case "sources":
            return sources(namespace)
        case "machines":
            return machines()
        case "gguf":
            return list(TYPES)
    return []


def machines() -> list[str]:
    """Return the names of machines that a plan may be for."""
    from nbtune.device import MACHINES

    return list(MACHINES)


def models(namespace: Mapping[str, Any]) -> list[str]:
    """Return variables that hold a model, nbtune's own, GGUF files, and those in the Hub's cache."""
    from nbtune.models.gguf_file.found import gguf_files

    mine = [name for name, value in namespace.items() if not name.startswith("_") and is_model(value)]
    return [*mine, *_EMBEDDED, *gguf_files(), *hub_cache.cached("model")]


def tokenizers(namespace: Mapping[str, Any]) -> list[str]:
    """Return variables that hold a tokenizer."""
    return [name for name, value in namespace.items() if not name.startswith("_") and is_tokenizer(value)]


def sources(namespace: Mapping[str, Any]) -> list[str]:
    """Return variables that hold rows, nbtune's own sets, and files here that look like data."""
    variables = [name for name, value in namespace.items() if not name.startswith("_") and _holds_rows(value)]
    files = sorted(path.name for path in Path.cwd().iterdir() if path.name.endswith(_DATA_ENDINGS))
    return [*variables, *embedded_sets(), *files]


def embedded_sets() -> list[str]:
    """Return the names of the sets that come with nbtune."""
    from nbtune.data.sources.builtin import SETS

    return sorted(SETS)


def _holds_rows(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return type(value).__name__ in ("DataFrame", "Dataset", "IterableDataset", "LazyFrame")


def _runs(runs_dir: Path | None) -> list[str]:
    import nbtune

    return _once(run.name for run in nbtune.runs(runs_dir))


def _once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))
