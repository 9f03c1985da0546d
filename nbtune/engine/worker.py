"""A process that does a run, or its share of one: alone, of several of this machine, of torchrun's or of Ray's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nbtune.engine import distributed_launcher
from nbtune.engine.engine import execute, follow
from nbtune.engine.lone_worker import stop_on_hangup, stop_with_parent
from nbtune.errors import NbtuneError
from nbtune.train.control import OtherIsGone

if TYPE_CHECKING:
    from nbtune.train.distributed import Ranks


def main(folder: Path, *, with_parent: bool = False) -> int:
    """Do a run in this process; what it says stands in its folder. Exit code 1: it failed.

    Args:
        folder: the run's.
        with_parent: it stops, is saved and ends when whoever started this process is gone.
    """
    stop_on_hangup(folder)
    if with_parent:
        stop_with_parent(folder)
    if "WORLD_SIZE" not in os.environ and (code := distributed_launcher.given_away(folder)) is not None:
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


def share(folder: Path, ranks: Ranks | None, *, compare: bool) -> int:
    """Do this process's share of a run; 0: it did well, else as an exit code.

    Args:
        folder: the run's.
        ranks: of several processes.
        compare: they are of several machines, and must see the same.
    Raises:
        NbtuneError: it failed, and that is said in the folder, or where the first of several will find it.
    """
    try:
        if ranks is not None and compare and not distributed_launcher.meet(folder, ranks):
            return 1
        if ranks is None or ranks.first:
            execute(folder, ranks=ranks)
        else:
            follow(folder, ranks)
    except OtherIsGone:
        return distributed_launcher.WITNESS
    except BaseException as error:
        if ranks is not None and not ranks.first:
            distributed_launcher.left_word(error, folder)
        raise
    return 0
