"""What is said of each run beside the others: where it stands, its losses as a small line, the best one, its size."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbtune.disk import folder_bytes
from nbtune.store import folder
from nbtune.store.run_reader import RunReader, readable
from nbtune.widgets.run_state import RunView, Watched
from nbtune.widgets.sanitize import clean, without_home

LISTED = 300  # the newest ones; what a page gets of each has some 300 bytes
POINTS = 32  # of a line
_AT_ONCE = 10  # lines that are made before the page hears of them
_Mark = tuple[int, int, bool]


class Overview:
    """The runs of a folder, newest first; what has not changed is not read again.

    Args:
        root: the folder of runs.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.found = root, 0  # how many runs there are
        self._known: dict[str, tuple[_Mark, dict[str, Any]]] = {}
        self._followed: dict[str, Watched] = {}  # those that live: their logs are read on, not from the start
        self._looking = threading.Lock()

    def look(self, told: Callable[[list[dict[str, Any]]], None]) -> None:
        """Look at the runs, and tell: first where they stand, then with the lines, a few at a time."""
        with self._looking:
            paths = folder.all_folders(self.root)
            self.found = len(paths)
            paths = paths[:LISTED]
            names = {path.name for path in paths}
            self._known = {name: known for name, known in self._known.items() if name in names}
            self._followed = {name: watched for name, watched in self._followed.items() if name in names}
            changed = [path for path in paths if self._has_changed(path)]
            told(self._shown(paths))
            for k, path in enumerate(changed, 1):
                self._known[path.name][1].update(self._measured(path))
                if k % _AT_ONCE == 0:
                    told(self._shown(paths))
            told(self._shown(paths))

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def _has_changed(self, path: Path) -> bool:
        run = RunReader(path)
        mark = _mark(run)
        known = self._known.get(path.name)
        if known is not None and known[0] == mark:
            return False
        facts, trouble = readable(run, _facts)
        body = {"trouble": trouble, "state": "", "step": 0} if trouble else facts
        before = {} if known is None else known[1]
        name = {"key": path.name, "name": clean(run.name, 200), "id": clean(run.id, 80), "trouble": ""}
        self._known[path.name] = (mark, {**before, **name, "created": folder.created(path), **body})
        return True

    def _measured(self, path: Path) -> dict[str, Any]:
        """Return a run's line, its last and best loss, and its bytes."""
        body: dict[str, Any] = {"line": [], "loss": None, "best": None, "bytes": folder_bytes(path)}
        found, _ = readable(RunReader(path), self._losses)
        return body | (found or {})

    def _losses(self, run: RunReader) -> dict[str, Any]:
        watched = self._followed.pop(run.folder.name, None)
        if watched is None:
            watched = Watched(run)
        else:
            watched.catch_up()
        if run.alive:
            self._followed[run.folder.name] = watched
        watched.close()  # its columns: until the next look another one may write them
        return _said(watched.view)

    def _shown(self, paths: list[Path]) -> list[dict[str, Any]]:
        return [dict(self._known[path.name][1]) for path in paths]


def _mark(run: RunReader) -> _Mark:
    """Return what is another when there is news: the length and the age of its log, and whether it lives."""
    try:
        log = (run.folder / "events.jsonl").stat()
        return log.st_size, log.st_mtime_ns, run.alive
    except OSError:
        return 0, 0, run.alive


def _facts(run: RunReader) -> dict[str, Any]:
    spec = run.spec
    about = {"model": clean(without_home(spec.model), 120), "method": spec.method}
    return {"state": run.state, "step": run.step, "total": run.total_steps, **about}


def _said(view: RunView) -> dict[str, Any]:
    losses = [float(loss) for loss in view.series.column("loss")]
    evals = [item["loss"] for item in view.lists["evals"] if item["loss"] is not None]
    finite = [loss for loss in losses if math.isfinite(loss)]
    status = view.status()
    return {
        "never": [*status["never"], *([] if status["resumable"] else ["resume"])],
        "anew": not view.run.saved_steps,
        "line": line(losses),
        "loss": float(f"{finite[-1]:.4g}") if finite else None,
        "best": float(f"{min(evals):.4g}") if evals else None,
    }


def line(losses: list[float], points: int = POINTS) -> list[int]:
    """Return a curve in few points from 0 (its lowest) to 100; what is no number is left out.

    >>> line([4.0, 3.0, 2.0, 2.0], 2)
    [100, 0]
    """
    edges = [round(k * len(losses) / points) for k in range(points + 1)]
    parts = [[x for x in losses[a:b] if math.isfinite(x)] for a, b in itertools.pairwise(edges)]
    means = [sum(part) / len(part) for part in parts if part]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return [round(100 * (mean - low) / (high - low)) if high > low else 50 for mean in means]
