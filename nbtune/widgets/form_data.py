"""The rows of a form: how their columns are read, the first three with what of them is trained, what looks odd."""

from __future__ import annotations

from typing import Any

from nbtune.data.formats.detect import FORMATS
from nbtune.errors import NbtuneError
from nbtune.spec import RunSpec
from nbtune.widgets.row_inspection import Inspection
from nbtune.widgets.sanitize import clean

SHOWN = 3
_OF_MODEL = ("model", "tokenizer", "trust_remote_code", "chat_template")
_READ_BY = (*_OF_MODEL, "data", "method", "sequence_len", "eval", "seed")
_MASKED_BY = ("train_on", "train_spans", "overflow", "thinking", "terminators", "on_error")
_SUMMARY = ("rows", "examined", "sources", "findings", "tokens", "trained_tokens", "longest", "max_len", "train_on")


def read_alike(spec: RunSpec, other: RunSpec | None) -> bool:
    """Return whether two specs read and mask their rows in the same way."""
    return other is not None and all(getattr(spec, key) == getattr(other, key) for key in (*_READ_BY, *_MASKED_BY))


def preview(inspection: Inspection) -> dict[str, Any]:
    """Return JSON of some KB: what the step *Data* of the form shows of the rows."""
    summary = inspection.summary()
    shown = {key: summary[key] for key in _SUMMARY if key in summary}
    return {**shown, "formats": sorted(FORMATS), "shown": [_row(inspection, k) for k in range(_few(inspection))]}


def _few(inspection: Inspection) -> int:
    return min(SHOWN, len(inspection))


def _row(inspection: Inspection, index: int) -> dict[str, Any]:
    """Return a row as its raw columns where it cannot be read yet, else in stretches."""
    try:
        return {"index": index, "stretches": inspection.stretches(index)}
    except NbtuneError:
        raw = inspection.raw(index)
        return {"index": index, "raw": [[clean(name, 60), clean(value, 240)] for name, value in raw.items()][:12]}


def with_columns(spec: RunSpec, source: int, format: str | None, columns: dict[str, str]) -> RunSpec:
    """Return the spec, with one of its sources read otherwise."""
    read = [entry.model_dump(exclude_defaults=True) for entry in spec.data]
    read[source] |= {"format": format or None, "columns": columns}
    return RunSpec.model_validate(spec.model_dump(exclude_unset=True) | {"data": read})
