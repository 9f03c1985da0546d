"""What a file is judged by: the trained model as stock transformers and peft run it, and the run's held-out rows.

rows = held_rows(run.folder)
with reference_model(source, room_for(source)) as model: ...
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nbtune.disk import gigabytes
from nbtune.errors import DataError
from nbtune.export.peft_adapter import AdapterFile
from nbtune.export.safetensors_reader import Weights
from nbtune.export.source import ExportSource
from nbtune.methods import METHODS
from nbtune.models.adapter_targets import rounded_linears
from nbtune.models.experts.stacks import round_stacks, rounded_pieces
from nbtune.models.loading import keep_caps
from nbtune.models.transformers_state import MAKING
from nbtune.spec.placement import Placement

_ROWS = 16
_MARGIN = 1 << 30


@dataclasses.dataclass(frozen=True)
class HeldRows:
    """Hold token ids to judge a file by.

    Args:
        ids: of each row, as training reads it (chat template included).
        trained: whether the rows were learnt from, because the run holds none out.
    """

    ids: tuple[tuple[int, ...], ...]
    trained: bool = False


def held_rows(folder: Path, *, limit: int = _ROWS) -> HeldRows:
    """Return the rows of a run that it was not trained on, read as the run reads them; at most `limit`.

    >>> len(nbtune.export.held_rows(nbtune.attach("demo").folder, limit=1).ids)
    1

    A run that holds nothing out gives rows that it was trained on, and says so. Of rows that judge, the better ones.

    Args:
        folder: the run's.

    Raises:
        DataError: the run's rows are gone, or hold no text.
    """
    from nbtune import data, models
    from nbtune.store.folder import spec_to_run

    spec = spec_to_run(folder)
    tokenizer = models.load_tokenizer(spec.speaks, trust_remote_code=spec.trust_remote_code)
    prepared = data.prepare_data(
        data.open_snapshot(folder / "data"),
        tokenizer,
        spec=spec,
        max_len=models.model_facts(spec.model).row_tokens(spec.sequence_len),
        seed=spec.seed,
        kind=METHODS[spec.method].rows,
    )
    prepared = prepared.whole()
    rows = (prepared.train if prepared.eval is None else prepared.eval).whole()
    good = [i for i in range(len(rows)) if rows.value_of is None or rows.value_of[i] > 0]
    ids = [tuple(rows[i].input_ids) for i in good[: 4 * limit]]
    ids = [row for row in ids if len(row) > 1][:limit]
    if not ids:
        raise DataError("the run's rows hold no text to compare by", place=folder.name)
    return HeldRows(tuple(ids), trained=prepared.eval is None)


@contextlib.contextmanager
def reference_model(source: ExportSource, device: torch.device | str = "cpu") -> Iterator[Any]:
    """Yield the trained model as transformers and peft load it: base in fp32 on a CPU, else as stored, and adapter.

    Where training had the base rounded (`ExportSource.weights`), its linear weights are the rounded ones here.
    """
    from transformers import AutoModelForCausalLM

    on_cpu = torch.device(device).type == "cpu"
    if source.adapter is not None:
        AdapterFile(source.adapter)  # refuses what makes peft import a module that the adapter names
    with MAKING:
        model = AutoModelForCausalLM.from_pretrained(
            str(source.base),
            dtype=torch.float32 if on_cpu else "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    keep_caps(model)
    if source.weights.quantised:
        _round_linears(model, source.weights)
        if source.weights.experts:
            round_stacks(model, source.weights.format, rounded_pieces(model, Weights(source.base)))
    if source.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(source.adapter))
    yield model.to(device).eval()


def _round_linears(model: Any, weights: Placement) -> None:
    """Give linear weights the values that a base quantised for training computes with."""
    from nbtune.models.accelerate.linear_kinds import rounded

    with torch.no_grad():
        for name in rounded_linears(model, weights):
            weight = model.get_submodule(name).weight
            weight.copy_(rounded(weight.float(), weights))


def _bytes_of(source: ExportSource, device: torch.device) -> int:
    """Return the bytes of the model as `reference_model` loads it: fp32 on a CPU, as stored (16 bit) on a GPU."""
    base = Weights(source.base)
    values = sum(torch.Size(base.shape(name)).numel() for name in base)
    return values * (4 if device.type == "cpu" else 2)


def room_for(source: ExportSource) -> torch.device | None:
    """Return where the model can be run: a GPU with room, else the CPU, or None."""
    from nbtune.device import describe, pick

    gpu = pick("auto")
    if gpu.type == "cuda" and describe(gpu).free > _bytes_of(source, gpu) + 4 * _MARGIN:
        return gpu
    cpu = torch.device("cpu")
    return cpu if describe(cpu).free > _bytes_of(source, cpu) + _MARGIN else None


def no_room(source: ExportSource) -> str:
    """Return the sentence that says why the model is not run here."""
    return f"running the model needs {gigabytes(_bytes_of(source, torch.device('cpu')))} of memory, and less is free"
