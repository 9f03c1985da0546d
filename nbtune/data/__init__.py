"""From any rows to exactly the right tokens: sources, formats, templates, masks, packs, and what was found in them.

    resolve → snapshot → prepare → BatchPlan
    (names)   (run folder) (tokens)   (batches of a step)

Nothing is imported before it is used: importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Batch": "nbtune.data.batches",
    "BatchPlan": "nbtune.data.batches",
    "DataFacts": "nbtune.data.facts",
    "Dataset": "nbtune.data.dataset",
    "Example": "nbtune.data.dataset",
    "Prepared": "nbtune.data.preparing",
    "Report": "nbtune.data.report",
    "Source": "nbtune.data.sources",
    "asked": "nbtune.data.given",
    "by_name": "nbtune.data.given",
    "changed_rows": "nbtune.data.snapshots",
    "collate": "nbtune.data.batches",
    "look": "nbtune.data.looking",
    "measure": "nbtune.data.preparing",
    "open_snapshot": "nbtune.data.snapshots",
    "prepare": "nbtune.data.preparing",
    "resolve": "nbtune.data.resolving",
    "snapshot": "nbtune.data.snapshots",
    "start": "nbtune.data.starting",
    "together": "nbtune.data.judged",
    "with_template": "nbtune.data.resolving",
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
    "asked",
    "by_name",
    "changed_rows",
    "collate",
    "look",
    "measure",
    "open_snapshot",
    "prepare",
    "resolve",
    "snapshot",
    "start",
    "together",
    "with_template",
]

if TYPE_CHECKING:
    from nbtune.data.batches import Batch, BatchPlan, collate
    from nbtune.data.dataset import Dataset, Example
    from nbtune.data.facts import DataFacts
    from nbtune.data.given import asked, by_name
    from nbtune.data.judged import together
    from nbtune.data.looking import look
    from nbtune.data.preparing import Prepared, measure, prepare
    from nbtune.data.report import Report
    from nbtune.data.resolving import resolve, with_template
    from nbtune.data.snapshots import changed_rows, open_snapshot, snapshot
    from nbtune.data.sources import Source
    from nbtune.data.starting import start


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nbtune.data' has no attribute {name!r}")
    module = import_module(home)
    value = getattr(module, name)
    globals()[name] = value
    return value
