"""The format of a run's folder: its version, and what older versions wrote otherwise. No other file knows.

`environment.json` says the version under `version`; a folder that says none is of version 0. Nothing of a newer
version is read: what is not understood could be misread, or written over.

| version | what was otherwise |
|---|---|
| 4 | this one |
| 3 | a spec that names no schedule has a cosine |
| 2 | as 3, and: rows are held out by a drawn order of those that have no copies; of 20,000 rows and more from files, which alone are learnt from while others are prepared, by their hash, the first ones; the longest of these are sought in a single jsonl file only; experts stay in 16 bits where other weights are rounded |
| 1 | nbtune 0.1.0, as 2, and: a plan may have no `hidden_size`, `num_layers` and `learning_rate_reason`, and says where frozen weights are by `weights` (their format), `resident_layers` and `sharded`; the pickle of a function of the data may be signed by itself, not with the rows that it is for |
| 0 | folders whose `environment.json` is gone: as version 1 |

To change the format: keep two runs as they are written now (`tests/tools/make_older_run.py`), count `FORMAT` up, add a
line above and a function below that makes of what an older version wrote what this one reads. A *rule* that changes,
such as which rows are held out, is a function here, too, of the version: a run goes on by the rule it began with. Rows
keep the version that they were written down by (`version` in `data/sources.json`) also in a run that repeats another,
or goes on from it.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.errors import TrainError
from nbtune.untrusted import BadFile, harmless, load, number

if TYPE_CHECKING:
    import numpy as np

FORMAT = 4
_FILE = "environment.json"


def stamp() -> dict[str, int]:
    """Return what a new folder's `environment.json` says of its format."""
    return {"version": FORMAT}


def version_of(folder: Path) -> int:
    """Return the version of a run's folder; 0 where it says none, or nothing that can be read."""
    try:
        return int(number(load(folder / _FILE, links=False), "version", 0))
    except (FileNotFoundError, BadFile):
        return 0


def rows_version(data: Path) -> int:
    """Return the version by whose rules the rows of a run's `data` folder are prepared; as `version_of`."""
    try:
        return int(number(load(data / "sources.json"), "version", 0))
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


def spec_fields(given: Collection[str], version: int) -> dict[str, Any]:
    """Return what a spec meant by leaving it out, where this version means something else.

    Args:
        given: the keys that it says.
        version: of the folder that it is in.
    """
    return {"lr_scheduler_type": "cosine"} if version < 4 and "lr_scheduler_type" not in given else {}


def plan_body(body: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Return what is in `plan.json` as this version writes it.

    Without a hidden size, today's rule gives another learning rate than the plan: the run is repeated with the plan's.
    """
    if version >= 2:
        return _with_experts(dict(body))
    plan: dict[str, Any] = {"hidden_size": 0, "learning_rate_reason": "", "num_layers": 0, **body}
    resident, sharded = plan.pop("resident_layers", None), plan.pop("sharded", False)
    if isinstance(plan.get("weights"), str):
        parts = plan.get("gpus", 1) if sharded else 1
        plan["weights"] = {"format": plan["weights"], "resident": resident, "parts": parts}
    return _with_experts(plan)


def _with_experts(plan: dict[str, Any]) -> dict[str, Any]:
    """Say it of plans that do not say it: a mixture's experts were left as they were."""
    if isinstance(plan.get("weights"), dict):
        plan["weights"] = {"experts": False, **plan["weights"]}
    return plan


def signature_of_pickle(record: Mapping[str, Any], version: int) -> object:
    """Return what the record of a pickled function (in `data/sources.json`) was signed with by itself; None since 2."""
    return record.get("signature") if version < 2 else None


def arrived_before_3(rows: int, *, from_files: bool, kind: str) -> bool:
    """Return whether so many rows were learnt from in a drawn order while others were prepared."""
    return rows >= 20_000 and from_files and kind == "sft"


def knew_longest_before_3(rows: object) -> bool:
    """Return whether a sample of such rows had those of most bytes in it."""
    return type(rows).__name__ == "LineRows"


def held_out_before_3(share: float, most: int, seed: int, *, at_once: bool) -> Callable[..., np.ndarray]:
    """Return the rule by which rows were held out: (source, number, hash of each row of a shard) -> bool [rows]."""
    import numpy as np

    def drawn(sources: np.ndarray, numbers: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Return, of all rows at once, of those without copies, the first of a drawn order."""
        rows = sources.astype(np.int64) * (1 << 40) + numbers
        _, same = np.unique(hashes, return_inverse=True)
        single = rows[np.bincount(same)[same] == 1]
        wanted = min(max(1, round(len(rows) * share)), max(len(single) - 1, 0), most)
        return np.isin(rows, np.random.default_rng([seed, 7]).permutation(single)[:wanted])

    before: set[int] = set()

    def first(sources: np.ndarray, numbers: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Return, shard by shard, those of the first contents below the share, with the copies that come later."""
        for content in hashes[hashes < np.uint64(int(share * 2**64))].tolist():
            if len(before) < most:
                before.add(content)
        return np.isin(hashes, np.fromiter(before, np.uint64, len(before)))

    return drawn if at_once else first
