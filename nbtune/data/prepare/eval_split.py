"""Rows that are held out to be measured: whole rows, and none that also stands among the others."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np

from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.report import Report
from nbtune.spec import RunSpec


def hold_out(train: Dataset, spec: RunSpec, seed: int, report: Report) -> tuple[Dataset, Dataset | None]:
    """Split off the rows to evaluate on: whole rows, and none that also stands among the others."""
    keys = train.source_of.astype(np.int64) * (1 << 40) + train.row_of
    first_of = np.flatnonzero(np.diff(keys, prepend=-1))  # a row's windows stand together
    rows, same = keys[first_of], _groups(train, first_of)
    report.duplicates = len(rows) - (int(same.max()) + 1)
    share = spec.eval.split
    if share is None:
        share = 0.05 if len(rows) >= 40 else 0.0
    if not share:
        return train, None
    count, rows = len(rows), rows[np.bincount(same)[same] == 1]
    wanted = min(max(1, round(count * share)), max(len(rows) - 1, 0))
    if spec.eval.split is None:
        wanted = min(wanted, spec.eval.max_rows)
    if not wanted:
        report.warnings.append("no rows are held out: all rows are duplicates of others")
        return train, None
    chosen = np.random.default_rng([seed, 7]).permutation(rows)[:wanted]
    out = np.isin(keys, chosen)
    return train.take(np.flatnonzero(~out)), train.take(np.flatnonzero(out))


def _groups(dataset: Dataset, first_of: np.ndarray) -> np.ndarray:
    """Return a number per row, the same for rows of the same tokens; int64 [rows], 0..groups-1.

    Args:
        first_of: the first example of each row.
    """
    known: dict[bytes, int] = {}
    groups = np.empty(len(first_of), np.int64)
    bounds = [*dataset.starts[first_of].tolist(), int(dataset.starts[-1])]
    for row, (start, end) in enumerate(pairwise(bounds)):
        digest = hashlib.blake2b(dataset.ids[start:end].tobytes(), digest_size=16).digest()
        groups[row] = known.setdefault(digest, len(known))
    return groups


def expected_held_out(rows: int, spec: RunSpec) -> int:
    """Return how many of `rows` rows `hold_out` will take, if they are all different."""
    if spec.eval.data is not None:
        return 0
    if spec.eval.split is None:
        return min(round(rows * 0.05), spec.eval.max_rows) if rows >= 40 else 0
    return max(1, round(rows * spec.eval.split)) if spec.eval.split else 0
