"""A process that does a run, or its share of one: alone, of several of this machine, of torchrun's or of Ray's."""

from __future__ import annotations

import os
from pathlib import Path

from nbtune.engine import distributed_launcher, ray_cluster
from nbtune.engine.lone_worker import stop_on_hangup, stop_with_parent
from nbtune.engine.share import share
from nbtune.errors import NbtuneError
from nbtune.store.folder import read_spec


def main(folder: Path, *, with_parent: bool = False) -> int:
    """Do a run in this process; what it says stands in its folder. Exit code 1: it failed.

    Args:
        folder: the run's.
        with_parent: it stops, is saved and ends when whoever started this process is gone.
    """
    stop_on_hangup(folder)
    if with_parent:
        stop_with_parent(folder)
    if "WORLD_SIZE" not in os.environ and (code := _given_away(folder)) is not None:
        return code
    from nbtune.train.distributed import Ranks

    distributed_launcher.stay_with_parent()
    meeting = os.environ.get(distributed_launcher.MEETING)
    ranks = Ranks.join(meeting)
    try:
        code = share(folder, ranks, compare=ranks is not None and meeting is None)
    except NbtuneError:
        return 1
    return code if code or ranks is None else ranks.leave()


def _given_away(folder: Path) -> int | None:
    """Let others do the run where its spec says so, and return an exit code; None: this process is to do it.

    What it could not begin of is said in the folder.
    """
    try:
        spec = read_spec(folder)
        if spec.cluster.used:
            return ray_cluster.drive(folder, spec)
        chosen = distributed_launcher.several(folder)
    except NbtuneError as error:
        distributed_launcher.refuse(folder, error)
        return 1
    return distributed_launcher.supervise(folder, chosen) if chosen else None
