"""Prompts with the answers of other rows: what a method is given that asks how far a model has moved at all.

A row of a step gets the answer of the row before it, and the first one the last one's, over all micro-batches and
processes, so that it does not matter how a step is divided. TRL rotates likewise, within a micro-batch. Each answer is
used once, so that these are the answers that are judged, under other prompts; which prompts follows the order within a
step, and any order is an equally good sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbtune.data.batching.collate import Batch, collate
from nbtune.data.prepare.dataset import Builder, Dataset
from nbtune.data.prepare.streaming_dataset import Arriving


def mismatched(
    dataset: Dataset | Arriving, of_step: Sequence[int], places: Sequence[int], multiple: int = 8, bucket: int = 64
) -> Batch | None:
    """Return the prompts of some of a step's rows, side by side, each with the answer of the row before it.

    Args:
        of_step: all of the step's examples, by number.
        places: which of them, by place.
        multiple, bucket: see `nbtune.data.batching.collate.collate`.

    Returns:
        None where the step has no other row.
    """
    if len(of_step) < 2 or not places:
        return None
    builder = Builder(["mismatched"])
    for example_place in places:
        (ids, trained), (others, answered) = (dataset.arrays(of_step[i]) for i in (example_place, example_place - 1))
        prompt, answer = _begin(trained), _begin(answered)
        joined = np.concatenate([ids[:prompt], others[answer:]]).astype(np.int32)
        builder.add(joined, np.concatenate([np.zeros(prompt, bool), answered[answer:]]), 0, example_place)
    return collate(builder.build(), list(range(len(places))), multiple, bucket=bucket)


def _begin(trained: np.ndarray) -> int:
    """Return where the answer begins: the first token with a loss, which the very first never has."""
    return 1 + int(np.argmax(trained[1:]))
