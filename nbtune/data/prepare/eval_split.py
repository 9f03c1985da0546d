"""Rows that are held out to be measured: whole rows, and none that also stands among the others.

A row is known by the hash of its tokens with the seed, so its copies stay on one side, wherever they lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from nbtune.data.prepare.dataset import Dataset
from nbtune.folder_format import held_out_before_3
from nbtune.spec import RunSpec

if TYPE_CHECKING:
    from nbtune.data.prepare.recipe import Recipe

_SHARE, _FEW = 0.05, 40  # what is held out where nothing is asked for, and of how many rows at least


def first_of_rows(data: Dataset) -> np.ndarray:
    """Return the numbers of the examples that begin a row, int64 [rows]: the examples of a row stand together."""
    keys = data.source_of.astype(np.int64) * (1 << 40) + data.row_of
    return np.flatnonzero(np.diff(keys, prepend=-1))


def digests(data: Dataset, seed: int) -> np.ndarray:
    """Return the hash of each row's tokens with the seed, uint64 [rows]."""
    firsts = first_of_rows(data)
    salt, ids = seed.to_bytes(8, "little"), data.ids
    bounds = [*data.starts[firsts].tolist(), int(data.starts[-1])]
    made = [hashlib.blake2b(ids[a:b].tobytes(), digest_size=8, key=salt).digest() for a, b in pairwise(bounds)]
    return np.frombuffer(b"".join(made), "<u8")


class HoldOut:
    """Says shard by shard which rows are held out: those of the smallest hashes.

    Of rows that are all there at once so many as are asked for; a row that would bring too many copies is passed over.
    Of rows that come shard by shard those whose hash is below the share, whichever came before.

    Args:
        recipe: its spec's `eval` says how many, `whole` that all come in one shard; folders of an older `version` go on
            by their rules (`nbtune.folder_format`).

    Attributes:
        share: of the rows; 0 where none are held out.
    """

    def __init__(self, recipe: Recipe) -> None:
        asked, rows = recipe.spec.eval, sum(recipe.counts)
        self.whole, self.unless_few = recipe.whole, asked.split is None
        share = (_SHARE if rows >= _FEW else 0.0) if asked.split is None else asked.split
        self.share = share if asked.data is None else 0.0
        self.most = asked.max_rows if asked.split is None else rows
        self.limit = min(self.share, self.most / max(rows, 1))
        self._older: Callable[..., np.ndarray] | None = None
        if recipe.version < 3:
            self._older = held_out_before_3(self.share, self.most, recipe.seed, at_once=recipe.whole)

    def choose(self, data: Dataset, hashes: np.ndarray) -> np.ndarray:
        """Return which examples of a shard are held out, bool [examples].

        Args:
            hashes: from `digests`, one a row.
        """
        if self.whole and self.unless_few and len(hashes) < _FEW:
            self.share = 0.0
        if not self.share or not len(hashes):
            return np.zeros(len(data), bool)
        firsts = first_of_rows(data)
        if self._older is not None:
            out = self._older(data.source_of[firsts], data.row_of[firsts], hashes)
        elif self.whole:
            out = self._smallest(hashes)
        else:
            out = hashes < np.uint64(int(self.limit * 2.0**64))
        return np.repeat(out, np.diff([*firsts, len(data)]))

    def _smallest(self, hashes: np.ndarray) -> np.ndarray:
        count = len(hashes)
        left = min(max(1, round(count * self.share)), count - 1, self.most)
        contents, copies = np.unique(hashes, return_counts=True)
        taken = []
        for content, of_it in zip(contents.tolist(), copies.tolist(), strict=True):
            if not left:
                break
            if of_it <= left:
                taken.append(content)
                left -= of_it
        return np.isin(hashes, np.array(taken, np.uint64))


def expected_held_out(rows: int, spec: RunSpec) -> int:
    """Return how many of `rows` rows will be held out, if they are all different."""
    if spec.eval.data is not None:
        return 0
    if spec.eval.split is None:
        return min(round(rows * _SHARE), spec.eval.max_rows) if rows >= _FEW else 0
    return max(1, round(rows * spec.eval.split)) if spec.eval.split else 0
