"""What a run itself brings to an export: its held-out rows, for importance and for the proof that the files are good.

rows = held_rows(run.folder)
files = prove(files, source, rows, prompts=["Hello"])
print(files[0].quality.summary())     # q4_k_m, 4.92 GB, fits in 8 GB, perplexity +1.3 %, KL 0.012
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nbtune.errors import DataError, ExportError, NbtuneError
from nbtune.export.files import gigabytes
from nbtune.export.gguf.vocabulary import load_tokenizer
from nbtune.export.gguf_quality import importance, reference_model, verify_gguf
from nbtune.export.llama_runner import find_llama, no_llama
from nbtune.export.source import ExportedFile, ExportSource
from nbtune.methods import METHODS

__all__ = ["HeldRows", "held_importance", "held_rows", "prove", "prove_run"]

_ROWS = 16
_LOGITS = 64 << 20  # bytes of a row's logits, in fp32
_MARGIN = 1 << 30


@dataclasses.dataclass(frozen=True)
class HeldRows:
    """Token ids to judge a file by.

    Args:
        ids: of each row, as training reads it (chat template included).
        trained: whether the rows were learnt from, because the run holds none out.
    """

    ids: tuple[tuple[int, ...], ...]
    trained: bool = False


def held_rows(folder: Path, *, limit: int = _ROWS) -> HeldRows:
    """The rows of a run that it was not trained on, read as the run reads them; at most `limit`.

    A run that holds nothing out gives rows that it was trained on, and says so. Of rows that judge, the better ones.

    Args:
        folder: the run's.

    Raises:
        DataError: the run's rows are gone, or hold no text.
    """
    from nbtune import data, models
    from nbtune.store.run_consent import spec_to_run

    spec = spec_to_run(folder)
    tokenizer = models.load_tokenizer(spec.model, trust_remote_code=spec.trust_remote_code)
    found = data.prepare_data(
        data.open_snapshot(folder / "data"),
        tokenizer,
        spec=spec,
        max_len=models.model_facts(spec.model).row_tokens(spec.sequence_len),
        seed=spec.seed,
        kind=METHODS[spec.method].rows,
    )
    rows: Any = found.train if found.eval is None else found.eval
    good = [i for i in range(len(rows)) if rows.value_of is None or rows.value_of[i] > 0]
    ids = [tuple(rows[i].input_ids) for i in good[: 4 * limit]]
    ids = [row for row in ids if len(row) > 1][:limit]
    if not ids:
        raise DataError("the run's rows hold no text to compare by", place=folder.name)
    return HeldRows(tuple(ids), trained=found.eval is None)


def held_importance(source: ExportSource, rows: HeldRows) -> dict[str, torch.Tensor]:
    """How strongly each column of each linear weight is felt on `rows`; what ``export_gguf(importance=...)`` takes.

    Raises:
        ExportError: the model does not fit into memory.
    """
    device = _room_for(source)
    if device is None:
        raise ExportError(_no_room(source), place=source.name, fix="export without importance.")
    with reference_model(source, device) as model:
        return importance(model, load_tokenizer(source.tokenizer_folder), rows.ids)


def prove(
    files: Sequence[ExportedFile],
    source: ExportSource,
    rows: HeldRows,
    *,
    prompts: Sequence[str] = (),
    library: Path | None = None,
    told: Callable[[ExportedFile], None] | None = None,
) -> list[ExportedFile]:
    """The same files, each with its `Quality` where it could be measured, else with a note that says why not.

    Args:
        files: GGUF files that were made of `source`.
        source: base and adapter; loaded once for all files.
        rows: see `held_rows`.
        prompts: questions whose answers are compared.
        library: of llama.cpp, see `find_llama`.
        told: called with each file when it is judged.
    """
    if library is None and find_llama() is None:
        return [_noted(file, f"not verified: {no_llama().cause}") for file in files]
    device = _room_for(source)
    if device is None:
        return [_noted(file, f"not verified: {_no_room(source)}") for file in files]
    judged = []
    with reference_model(source, device) as model:
        limit = max(32, _LOGITS // (4 * int(model.get_input_embeddings().weight.shape[0])))
        ids = [row[:limit] for row in rows.ids]
        for file in files:
            judged.append(_judged(file, source, ids, prompts, model, library, rows.trained))
            if told:
                told(judged[-1])
    return judged


def prove_run(
    files: Sequence[ExportedFile],
    source: ExportSource,
    folder: Path,
    *,
    prompts: Sequence[str] = (),
    must: bool = False,
    told: Callable[[ExportedFile], None] | None = None,
) -> list[ExportedFile]:
    """`prove` by a run's own rows. What stands in the way is a note of the files, or with `must` an error.

    Args:
        files, source, prompts, told: see `prove`.
        folder: the run's.
        must: raise where nothing could be measured.

    Raises:
        ExportError, DataError: with `must`.
    """
    if find_llama() is None and not must:
        return list(files)
    try:
        judged = prove(files, source, held_rows(folder), prompts=prompts, told=told)
    except NbtuneError as error:
        if must:
            raise
        judged = [_noted(file, f"not verified: {error.cause}") for file in files]
    if must and any(file.quality is None for file in judged):
        raise ExportError(judged[0].notes[-1], place=source.name, fix="export with verify=False.")
    return judged


def _judged(
    file: ExportedFile,
    source: ExportSource,
    ids: Sequence[tuple[int, ...]],
    prompts: Sequence[str],
    model: Any,
    library: Path | None,
    trained: bool,
) -> ExportedFile:
    try:
        quality = verify_gguf(file, source, rows=ids, prompts=prompts, model=model, library=library)
    except ExportError as error:
        return _noted(file, f"VERIFYING FAILED: {error.cause}")
    notes = (*file.notes, *(["judged on rows that were trained on: the run holds none out"] if trained else []))
    return dataclasses.replace(file, quality=quality, notes=notes)


def _noted(file: ExportedFile, note: str) -> ExportedFile:
    return dataclasses.replace(file, notes=(*file.notes, note))


def _needed(source: ExportSource, device: torch.device) -> int:
    """Bytes of the model as `reference_model` loads it: fp32 on a CPU, as stored (16 bit) on a GPU."""
    from nbtune.export.safetensors_reader import Weights

    base = Weights(source.base)
    values = sum(torch.Size(base.shape(name)).numel() for name in base)
    return values * (4 if device.type == "cpu" else 2)


def _room_for(source: ExportSource) -> torch.device | None:
    """Where the model can be run: a GPU with room, else the CPU, or None."""
    from nbtune.device import describe, pick

    gpu = pick("auto")
    if gpu.type == "cuda" and describe(gpu).free > _needed(source, gpu) + 4 * _MARGIN:
        return gpu
    cpu = torch.device("cpu")
    return cpu if describe(cpu).free > _needed(source, cpu) + _MARGIN else None


def _no_room(source: ExportSource) -> str:
    return f"running the model needs {gigabytes(_needed(source, torch.device('cpu')))} of memory, and less is free"
