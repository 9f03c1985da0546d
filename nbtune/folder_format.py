"""The format of a run's folder: its version, and what older versions wrote otherwise. No other file knows.

`environment.json` says the version under `version`; a folder that says none is of version 0. Nothing of a newer
version is read: what is not understood could be misread, or written over.

| version | what was otherwise |
|---|---|
| 2 | this one |
| 1 | nbtune 0.1.0: a plan may have no `hidden_size`, `num_layers` and `learning_rate_reason`, and says where frozen weights are by `weights` (their format), `resident_layers` and `sharded`; the pickle of a function of the data may be signed by itself, not with the rows that it is for |
| 0 | folders whose `environment.json` is gone: as version 1 |

To change the format: keep two runs as they are written now (`tests/tools/make_older_run.py`), count `FORMAT` up, add a
line above and a function below that makes of what an older version wrote what this one reads. A *rule* that changes,
such as which rows are held out, is a function here, too, of the version: a run goes on by the rule it began with.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbtune.errors import TrainError
from nbtune.untrusted import BadFile, harmless, load, number

FORMAT = 2
_FILE = "environment.json"


def stamp() -> dict[str, int]:
    """Return what a new folder's `environment.json` says of its format."""
    return {"version": FORMAT}


def version_of(folder: Path) -> int:
    """Return the version of a run's folder; 0 where it says none, or nothing that can be read."""
    try:
        return int(number(load(folder / _FILE), "version", 0))
    except (FileNotFoundError, BadFile):
        return 0


def is_newer(folder: Path) -> bool:
    """Return whether a newer nbtune made it."""
    return version_of(folder) > FORMAT


def refuse_newer(folder: Path) -> None:
    """Raise a `TrainError` for the folder of a newer nbtune."""
    if is_newer(folder):
        raise TrainError(
            "this run was made by a newer nbtune",
            place=harmless(folder.name, line=True),
            fix="upgrade nbtune to open it",
        )


def plan_body(body: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Return what is in `plan.json` as this version writes it.

    Without a hidden size, today's rule gives another learning rate than the plan: the run is repeated with the plan's.
    """
    if version >= 2:
        return dict(body)
    plan: dict[str, Any] = {"hidden_size": 0, "learning_rate_reason": "", "num_layers": 0, **body}
    resident, sharded = plan.pop("resident_layers", None), plan.pop("sharded", False)
    if isinstance(plan.get("weights"), str):
        parts = plan.get("gpus", 1) if sharded else 1
        plan["weights"] = {"format": plan["weights"], "resident": resident, "parts": parts}
    return plan


def signature_of_pickle(record: Mapping[str, Any], version: int) -> object:
    """Return what the record of a pickled function (in `data/sources.json`) was signed with by itself; None since 2."""
    return record.get("signature") if version < 2 else None
