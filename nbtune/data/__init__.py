"""From any rows to exactly the right tokens: sources, formats, templates, masks, packs, and what was found in them.

    resolve → snapshot → prepare_data → BatchPlan
    (names)   (run folder) (tokens)   (batches of a step)

Nothing is imported before it is used: importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Batch": "nbtune.data.batching.collate",
    "BatchPlan": "nbtune.data.batching.sampler",
    "DataFacts": "nbtune.data.prepare.stats",
    "Dataset": "nbtune.data.prepare.dataset",
    "Example": "nbtune.data.prepare.dataset",
    "Prepared": "nbtune.data.prepare.report",
    "Report": "nbtune.data.prepare.report",
    "Source": "nbtune.data.sources.rows",
    "collate": "nbtune.data.batching.collate",
    "labels_at_hand": "nbtune.data.prepare.labels",
    "look": "nbtune.data.prepare.validate",
    "measure": "nbtune.data.prepare.measure",
    "open_snapshot": "nbtune.data.sources.snapshot",
    "prepare_data": "nbtune.data.prepare.prepare",
    "resolve": "nbtune.data.sources.resolve",
    "snapshot": "nbtune.data.sources.snapshot",
    "speaking": "nbtune.data.prepare.row_pipeline",
    "with_rewards": "nbtune.data.sources.rewards",
}

__all__ = [
    "Batch",
    "BatchPlan",
    "DataFacts",
    "Dataset",
    "Example",
    "Prepared",
    "Report",
    "Source",
    "collate",
    "labels_at_hand",
    "look",
    "measure",
    "open_snapshot",
    "prepare_data",
    "resolve",
    "snapshot",
    "speaking",
    "with_rewards",
]

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch, collate
    from nbtune.data.batching.sampler import BatchPlan
    from nbtune.data.prepare.dataset import Dataset, Example
    from nbtune.data.prepare.labels import labels_at_hand
    from nbtune.data.prepare.measure import measure
    from nbtune.data.prepare.prepare import prepare_data
    from nbtune.data.prepare.report import Prepared, Report
    from nbtune.data.prepare.row_pipeline import speaking
    from nbtune.data.prepare.stats import DataFacts
    from nbtune.data.prepare.validate import look
    from nbtune.data.sources.resolve import resolve
    from nbtune.data.sources.rewards import with_rewards
    from nbtune.data.sources.rows import Source
    from nbtune.data.sources.snapshot import open_snapshot, snapshot


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nbtune.data' has no attribute {name!r}")
    module = import_module(home)
    value = getattr(module, name)
    globals()[name] = value
    return value
