"""What a spec's `row_weights` say: rows that are left out, and those that match none; and rules that no row meets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.report import NO_WEIGHT, Report
from nbtune.spec import RunSpec
from nbtune.untrusted import shortened


def without_dropped(dataset: Dataset, report: Report, *, weighted: bool = True) -> Dataset:
    """Return the examples whose weight is above 0; the report is told of the rows of the others.

    Rows are left out after some were held out: so the others are the same ones with them and without.

    Args:
        weighted: False forgets the weights of those that stay: held-out rows are measured, each once.
    """
    if dataset.weight_of is None:
        return dataset
    stay = dataset.weight_of > 0
    gone = np.flatnonzero(~stay)
    rows = dict.fromkeys((dataset.source_name(i), int(dataset.row_of[i])) for i in gone.tolist())
    report.fates += [(source, row, "dropped", NO_WEIGHT) for source, row in rows]
    left = dataset.take(np.flatnonzero(stay)) if len(gone) else dataset
    if not weighted:
        left = left if left is not dataset else dataset.take(np.arange(len(dataset)))
        left.weight_of = None
    return left


def unmatched(spec: RunSpec, matched: Collection[str]) -> list[str]:
    """Return a warning, where marks of `row_weights` are of no row."""
    missing = [mark for mark in spec.row_weights if mark not in matched]
    if not missing:
        return []
    return [
        f"{len(missing)} of {len(spec.row_weights)} marks of `row_weights` are of no row that is there "
        f"({', '.join(missing[:3])}): has the row changed?"
    ]


def unmet(spec: RunSpec, met: Collection[int]) -> list[str]:
    """Return a warning for each rule of `train_spans` that stands in no row's text."""
    return [
        f"`train_spans` number {number + 1} does nothing: `{shortened(rule.match)}` "
        f"{'matches' if rule.regex else 'stands'} nowhere in the rows, as the template writes them"
        for number, rule in enumerate(spec.train_spans)
        if number not in met
    ]


DIGITS = 12  # a row that is not meant has the mark of one that is with a chance of 2^-48


def mark_of(row: Mapping[str, Any]) -> str:
    """Return ``r`` and twelve hexadecimal digits of the BLAKE2b hash of the row's JSON, without keys that hold nothing.

    >>> mark_of({"b": 1, "a": None}) == mark_of({"b": 1})
    True
    """
    text = json.dumps(_filled(row), sort_keys=True, ensure_ascii=False, default=str)
    return "r" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGITS // 2).hexdigest()


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _filled(inner) for key, inner in value.items() if inner is not None}
    return [_filled(inner) for inner in value] if isinstance(value, list | tuple) else value
