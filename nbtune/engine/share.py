"""A process's share of a run: the same under `gpus:`, torchrun, Slurm and Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nbtune.engine import distributed_launcher
from nbtune.engine.engine import execute, follow
from nbtune.train.control import OtherIsGone

if TYPE_CHECKING:
    from nbtune.train.distributed import Ranks


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
